"""Faults in a real federation cost replies, never updates (slow: real processes)."""

import dataclasses
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from fedef.checkpoint import Checkpoint
from fedef.client_store import ClientStore
from fedef.config import Config
from fedef.errors import ConfigError, FedefError, StateMismatch
from fedef.experiment import Experiment
from fedef.randomness import stream
from fedef.state import ClientRecord
from sims.counting_proxy import counting
from sims.credentials import Credentials, Ports
from sims.engine import InlineEngine
from sims.faults import clock, messages
from sims.faults.checks import mean_error
from sims.faults.disk import SmallDisk, small_disk
from sims.faults.federation import FaultyFederation
from sims.faults.messages import flipped
from sims.faults.plan import CLOCK, DISK, NODE, SERVER_APP, SUPERLINK, Faults
from sims.faults.wire import CHANGED, CUT, DELAYED, LONGEST_DELAY_SECONDS, WireFaults

SMALL = {"problem": "polynomial", "num-clients": 2, "num-rounds": 6, "seed": 11}
"""Quick to start: each message is a process of its own."""


def test_the_seed_draws_who_is_struck():
    faults = Faults(node_kills=30, server_kills=10, full_disks=4, clock_moves=3)
    kinds = faults.victims(3)
    assert Counter(kinds) == {NODE: 30, SERVER_APP: 5, SUPERLINK: 5, DISK: 4, CLOCK: 3}
    assert faults.victims(3) == kinds != faults.victims(4)


@pytest.fixture
def after_four_rounds():
    """An experiment, and what lies on the disks: clients hold their last update as pending."""
    config = Config.from_flat({"problem": "digits-softmax", "num-clients": 3, "k-fraction": 0.05})
    engine = InlineEngine(Experiment.build(config))
    for _ in range(4):
        engine.round()
    server = engine.server.state
    states = [(server.records[client], engine.clients[client].state) for client in range(3)]
    return engine.experiment, server, states


def test_the_invariant_holds_up_to_the_pending_update(after_four_rounds):
    experiment, server, states = after_four_rounds
    assert all(state.pending is not None for _, state in states)
    assert mean_error(experiment, Checkpoint(server), states) < 1e-6


def test_an_update_that_was_applied_twice_is_found(after_four_rounds):
    experiment, server, states = after_four_rounds
    update = states[1][1].pending.g
    total = server.total.copy()
    total[update.where] += experiment.weights[1] * update.values
    with pytest.raises(FedefError, match="not the mean of the clients' g_i"):
        mean_error(experiment, Checkpoint(dataclasses.replace(server, total=total)), states)


def test_an_update_that_was_lost_is_found(after_four_rounds):
    experiment, server, states = after_four_rounds
    states[2] = (states[2][0], dataclasses.replace(states[2][1], pending=None))
    with pytest.raises(StateMismatch):
        mean_error(experiment, Checkpoint(server), states)
    states[2] = (ClientRecord(4, bytes(8)), None)
    with pytest.raises(FedefError, match="lost the state"):
        mean_error(experiment, Checkpoint(server), states)


def test_only_what_lives_is_killed_and_counted(tmp_path):
    federation = FaultyFederation(Config.from_flat({}), tmp_path / "run", Faults(), print)
    sleeps = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    sleeps[0].kill()
    sleeps[0].wait()
    federation._federation = SimpleNamespace(nodes=dict(enumerate(sleeps)))
    try:
        assert federation._strike(NODE)
        assert sleeps[1].wait(20) == -signal.SIGKILL
        assert not federation._strike(NODE)
        assert federation._tally.strikes == {NODE: 1}
    finally:
        for process in sleeps:
            process.kill()
            process.wait()


def test_message_faults_are_drawn_by_seed_round_and_client():
    """Each kind with probability share / 5: within 5 standard deviations of 10,000 draws."""
    drawn = [messages.drawn(0.5, 7, round, client) for round in range(1000) for client in range(10)]
    again = [messages.drawn(0.5, 7, round, client) for round in range(1000) for client in range(10)]
    assert drawn == again
    deviation = (10_000 * 0.1 * 0.9) ** 0.5
    for kind in messages.KINDS:
        assert abs(drawn.count(kind) - 1000) < 5 * deviation
    assert [messages.drawn(0.0, 7, 1, client) for client in range(100)] == [None] * 100


def test_one_bit_is_flipped():
    data = bytes(range(64))
    for round in range(50):
        changed = flipped(data, stream(1, "flip", round))
        difference = int.from_bytes(data, "big") ^ int.from_bytes(changed, "big")
        assert difference.bit_count() == 1
        assert changed == flipped(data, stream(1, "flip", round))


def test_a_wrong_clock_is_wrong_in_python_and_nowhere_else(tmp_path):
    """A process of its own, as the clock is the process's; 1000 s cannot be a slow machine."""
    offset_file = tmp_path / "offset"
    code = """
import sys, time
from pathlib import Path
from flwr.supercore.date import now
from sims.faults.clock import set_ahead
def clocks():
    time.sleep(0.15)
    return time.time(), time.time_ns() / 1e9, now().timestamp(), time.monotonic()
right = clocks()
set_ahead(Path(sys.argv[1]), 86400.0)
ahead = clocks()
set_ahead(Path(sys.argv[1]), -86400.0)
behind = clocks()
print(*(a - b for a, b in zip(ahead, right)), *(a - b for a, b in zip(behind, right)))
"""
    own = clock.variables(tmp_path / "clock", offset_file, os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code, offset_file],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=True,
    )
    moved = [float(word) for word in done.stdout.split()]
    expected = [86400.0] * 3 + [0.0] + [-86400.0] * 3 + [0.0]
    assert all(abs(m - e) < 1000 for m, e in zip(moved, expected, strict=True))


@pytest.fixture
def disk(tmp_path):
    try:
        with small_disk(tmp_path / "disk") as made:
            yield made
    except FedefError as error:
        pytest.skip(str(error))


def test_a_full_disk_refuses_a_state_and_keeps_the_old_one(disk, after_four_rounds):
    """What a client needs to go on is as it was, and the error names the way out."""
    _, _, states = after_four_rounds
    store = ClientStore(disk.folder, token="0" * 32, client=1)
    store.save(states[1][1])
    before = store.path.read_bytes()
    disk.fill()
    with pytest.raises(ConfigError, match=r"No space left on device; free space"):
        store.save(states[2][1])
    assert [store.path.read_bytes()] == [p.read_bytes() for p in store.path.parent.iterdir()]
    assert store.path.read_bytes() == before
    disk.free()
    store.save(states[2][1])
    assert store.path.read_bytes() != before


def test_a_small_disk_is_gone_after_an_error(disk):
    folder = disk.folder / "another"
    with pytest.raises(KeyError), small_disk(folder):
        assert folder.is_mount()
        raise KeyError
    assert not folder.is_mount()


def test_who_may_not_mount_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "mount").write_text("#!/bin/sh\necho not permitted >&2\nexit 32\n")
    (tmp_path / "mount").chmod(0o700)
    with pytest.raises(FedefError, match="not permitted; it needs root"):
        SmallDisk(tmp_path / "disk")


def test_the_wire_delays_cuts_and_changes_by_the_seed(monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    wire = WireFaults(0.5, stream(1, "wire"))
    piece = bytes(range(256))
    passed = [wire(piece) for _ in range(2000)]
    cut = passed.count(None)
    changed = sum(p is not None and p != piece for p in passed)
    assert wire.counts == {CUT: cut, CHANGED: changed, DELAYED: len(waits)}
    assert abs(sum(wire.counts.values()) - 1000) < 5 * (2000 * 0.25) ** 0.5
    assert min(wire.counts.values()) > 200
    assert 0 <= min(waits) < max(waits) <= LONGEST_DELAY_SECONDS
    wire.share = 0.0
    assert [wire(piece) for _ in range(100)] == [piece] * 100


def test_tls_refuses_a_changed_byte(tmp_path):
    """The credentials of the federation: what arrives is what was sent, up to a break."""
    made = Credentials.create(tmp_path / "made", num_nodes=1, host="127.0.0.1", ports=Ports(1, 2))
    trusting = ssl.create_default_context(cafile=made.ca)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(made.folder / "server.crt", made.folder / "server.key")
    sent, heard = bytes(range(256)) * 40, bytearray()
    spoiling = threading.Event()

    def spoil(piece):
        return flipped(piece, stream(1, "flip")) if spoiling.is_set() else piece

    def listen(listener):
        with serving.wrap_socket(listener.accept()[0], server_side=True) as end:
            end.sendall(b"!")
            try:
                while piece := end.recv(70_000):
                    heard.extend(piece)
            except ssl.SSLError as error:
                return error.reason
        return None

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(1) as pool,
        counting(listener.getsockname()[1], on_piece=spoil) as proxy,
    ):
        verdict = pool.submit(listen, listener)
        plain = socket.create_connection(("127.0.0.1", proxy.port))
        with trusting.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            client.settimeout(20)
            assert client.recv(1) == b"!"
            client.sendall(sent)
            while len(heard) < len(sent):
                time.sleep(0.01)
            spoiling.set()
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            reason = verdict.result(20)
    assert reason is not None
    assert heard == sent


@pytest.mark.slow
def test_real_kills_and_faulty_messages_cost_no_update(tmp_path):
    """Each round's states on disk; at the end the bits of an inline run with the same losses."""
    config = Config.from_flat(SMALL)
    faults = Faults(node_kills=1, server_kills=2, message_faults=0.5)
    tally = FaultyFederation(config, tmp_path / "run", faults, print).run()
    assert tally.strikes == {NODE: 1, SERVER_APP: 1, SUPERLINK: 1}
    assert tally.same_bits
    assert tally.rounds_checked >= 8
    assert tally.submissions >= 3
    assert len(tally.message_faults) >= 3


@pytest.mark.slow
def test_a_full_disk_a_wrong_clock_and_a_bad_wire_cost_no_update(tmp_path, disk):
    """The same; `disk` is there to skip where nobody may mount."""
    config = Config.from_flat(SMALL)
    faults = Faults(full_disks=1, clock_moves=1, wire_faults=0.01)
    tally = FaultyFederation(config, tmp_path / "run", faults, print).run()
    assert tally.strikes == {DISK: 1, CLOCK: 1}
    assert tally.same_bits
    assert tally.full_disk_errors >= 1
    assert sum(tally.wire_faults.values()) >= 1


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("sims.faults", "--message-faults 2", "--message-faults is a share"),
        ("sims.faults", "--node-kills -1", "--node-kills must not be negative"),
        ("sims.wire_bench", "--rounds 1", "--rounds must be at least 2"),
        ("sims.soak_nodes", "--problem nope", "error problem: input should be"),
    ],
)
def test_bad_options_are_refused_in_a_line(module, arguments, said):
    command = [sys.executable, "-m", module, *arguments.split()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr
