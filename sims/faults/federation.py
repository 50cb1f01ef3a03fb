"""One run on a federation of real processes, and the hand that does the faults."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

import numpy as np
import psutil

from fedef.checkpoint import Checkpoint, read_checkpoint
from fedef.client_store import ClientStore
from fedef.config import Config
from fedef.errors import FedefError
from fedef.experiment import Experiment
from fedef.randomness import stream
from fedef.run_folder import RunFolder
from fedef.service import Service
from fedef.state import NO_DIGEST, ClientRecord
from sims.counting_proxy import counting
from sims.credentials import CONNECTION
from sims.deployment import Deployment
from sims.faults import clock, messages
from sims.faults.checks import Held, mean_error, missing_by_round, same_bits_inline
from sims.faults.disk import SmallDisk, small_disk
from sims.faults.plan import DISK, NODE, SERVER_APP, SUPERLINK, Faults
from sims.faults.tally import Tally
from sims.faults.wire import WireFaults
from sims.flower_engine import OUR_APPS, run_command, write_app
from sims.processes import processes_of, temporary_home

RESTART_SECONDS = 5.0
"""Between two starts of a node: a killed one is refused for up to a minute."""

HUNG_SECONDS = 60.0
"""After some broken connections Flower's SuperNode neither works nor ends: a node without any
connection for so long is ended, as the watchdog of a device would."""

SERVICE = Service(round_timeout=120.0, max_refusals=0)
"""A reply that the network lost is not waited for long, and a client is not excluded for damage
that the harness does to its replies; a killed node counts as gone after a minute by itself."""

ILL_ROUNDS = 3
"""Rounds for which a disk is full or a clock is wrong; the first one may not notice it."""
ILL_SECONDS = 180.0
"""The longest for which they are: a run that starts again waits for all nodes."""
CLOCK_SECONDS = (60.0, 86400.0)
"""Bounds of how far a clock is moved."""

APPS = OUR_APPS | {"serverapp": "sims.faults.app:app"}


@dataclass
class _Ailment:
    """What is wrong with a node for a while."""

    kind: str
    since_round: int
    until_seconds: float
    """By the monotonic clock, should no rounds end meanwhile."""


class FaultyFederation:
    """One run and the hand that does the faults.

    Parameters
    ----------
    config
        What is run; it goes on for as many rounds as the faults need, and some calm ones.
    out
        The run's folder.
    faults
        What is to happen; of what strikes one process, one in a round at most.
    say
        Told what happens.
    """

    def __init__(
        self, config: Config, out: Path, faults: Faults, say: Callable[[str], None]
    ) -> None:
        self._victims = faults.victims(config.seed)
        lasting = faults.full_disks + faults.clock_moves
        stormy = max(len(self._victims) + ILL_ROUNDS * lasting, config.num_rounds)
        rounds = stormy + messages.CALM_ROUNDS
        self._config = Config.from_flat({**config.to_flat(), "num-rounds": rounds})
        self._experiment = Experiment.build(self._config)
        self._folder, self._faults, self._say = RunFolder(out.resolve()), faults, say
        self._draws = stream(config.seed, "faults")
        self._wire = WireFaults(faults.wire_faults, stream(config.seed, "wire-faults"))
        self._tally = Tally()
        self._seen, self._round_began, self._strike_at = 0, time.monotonic(), float("inf")
        self._last_stormy = stormy
        self._node_died: dict[int, float] = {}
        self._connected: dict[int, float] = {}
        self._disks: dict[int, SmallDisk] = {}
        self._ill: dict[int, _Ailment] = {}
        self._must_miss: set[tuple[int, int]] = set()

    def run(self) -> Tally:
        """Run to the end.

        Raises
        ------
        FedefError
            If the invariant does not hold, the run does not end, or a client does not come back.
        """
        began, n = time.monotonic(), self._experiment.num_clients
        log_path = self._folder.path.with_name(f"{self._folder.path.name}.log")
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_home() as home, log_path.open("wb") as log, ExitStack() as stack:
            self._home, self._states, self._calm = home, home / "states", home / "calm"
            defaults = {**self._config.to_flat(), **Service().to_flat()}
            self._app = write_app(home / "app", defaults, components=APPS)
            self._log = log.fileno()
            if self._faults.full_disks:
                for number in range(n):
                    disk = small_disk(self._states / str(number))
                    self._disks[number] = stack.enter_context(disk)
            self._federation = Deployment(
                home, log_path, log.fileno(), lambda: None, None, num_nodes=n
            )
            self._federation.environment |= {
                messages.SHARE: str(self._faults.message_faults),
                messages.LOG: str(home / "message-faults"),
                messages.CALM: str(self._calm),
            }
            fleet = self._federation.credentials.ports.fleet
            self._through = stack.enter_context(counting(fleet, on_piece=self._wire)).port
            self._federation.start_superlink()
            for number in range(n):
                self._federation.register(number)
                self._start_node(number)
            self._submit()
            limit = began + 180.0 * (self._config.num_rounds + 2)
            while not self._folder.summary_path.exists():
                if time.monotonic() > limit:
                    raise FedefError(f"the run does not end; its log: {log_path}")
                self._tick()
                time.sleep(0.2)
            self._check(*self._states_on_disk())
            self._tally.message_faults = _lines(home / "message-faults")
        self._tally.wire_faults = dict(self._wire.counts)
        self._tally.full_disk_errors = log_path.read_bytes().count(os.strerror(ENOSPC).encode())
        self._compare()
        self._tally.seconds = time.monotonic() - began
        return self._tally

    def _tick(self) -> None:
        for number, node in list(self._federation.nodes.items()):
            if node.poll() is None:
                self._end_hung(number, node.pid)
                continue
            died = self._node_died.setdefault(number, time.monotonic())
            if time.monotonic() > died + RESTART_SECONDS:
                self._start_node(number)
        if self._run.poll() is not None and not self._folder.summary_path.exists():
            self._say("the run ended early")
            self._submit()
        rounds = self._rounds()
        self._seen = min(self._seen, rounds)  # a resumed run repeats what had no checkpoint
        if rounds > self._seen:
            self._seen = rounds
            self._check(*self._states_on_disk())
            took = time.monotonic() - self._round_began
            self._round_began = time.monotonic()
            if self._victims and self._strike_at == float("inf"):
                wait = float(self._draws.uniform(0.0, min(took, 10.0)))
                self._strike_at = time.monotonic() + wait
        self._nurse()
        if self._victims and (time.monotonic() > self._strike_at or self._held):
            done = self._strike(self._victims[0])
            self._strike_at = float("inf") if done else time.monotonic() + RESTART_SECONDS
            if done:
                self._victims.pop(0)
        if self._held and not self._victims and not self._ill:
            self._wire.share = 0.0
            self._calm.touch()

    def _end_hung(self, number: int, process: int) -> None:
        """End a node that has had no connection to the SuperLink for `HUNG_SECONDS`."""
        with suppress(psutil.NoSuchProcess):
            ends = psutil.Process(process).net_connections(kind="tcp")
            now = time.monotonic()
            if any(end.raddr and end.raddr.port == self._through for end in ends):
                self._connected[number] = now
            elif now > self._connected.setdefault(number, now) + HUNG_SECONDS:
                os.kill(process, signal.SIGKILL)
                self._tally.hung_nodes += 1
                self._say(f"round {self._seen + 1}: node {number} hangs and is ended")

    @property
    def _held(self) -> bool:
        """Whether the server waits for the end of the faults."""
        return self._seen >= self._last_stormy

    def _nurse(self) -> None:
        """Keep full disks full, and make nodes well whose time is over."""
        for number, ailment in list(self._ill.items()):
            over = self._seen >= ailment.since_round + ILL_ROUNDS or self._held
            if not over and time.monotonic() < ailment.until_seconds:
                if ailment.kind == DISK:
                    self._disks[number].fill()
                continue
            if ailment.kind == DISK:
                whole = range(ailment.since_round + 2, self._seen + 1)
                self._must_miss |= {(round, number) for round in whole}
                self._disks[number].free()
            else:
                clock.set_ahead(self._offset_file(number), 0.0)
            del self._ill[number]
            self._say(f"round {self._seen + 1}: {ailment.kind} of node {number} is well again")

    def _rounds(self) -> int:
        with suppress(OSError):
            return self._folder.rounds_path.read_bytes().count(b"\n")
        return 0

    def _start_node(self, number: int) -> None:
        self._node_died.pop(number, None)
        self._connected[number] = time.monotonic()
        self._tally.node_starts += 1
        own = clock.variables(
            self._home / "clock",
            self._offset_file(number),
            self._federation.environment["PYTHONPATH"],
        )
        self._federation.start_node(
            number,
            f'state-dir="{self._states / str(number)}"',
            through=self._through,
            variables=own if self._faults.clock_moves else {},
        )

    def _offset_file(self, number: int) -> Path:
        return self._home / f"clock-{number}"

    def _submit(self) -> None:
        """Start the run, or go on with it from its folder."""
        self._tally.submissions += 1
        if self._tally.submissions > 3 * (self._tally.strikes.total() + self._config.num_rounds):
            raise FedefError("the run ends early again and again")
        key = "resume" if self._folder.checkpoint_path.exists() else "out"
        service = SERVICE.model_copy(update={key: str(self._folder.path)}).to_flat()
        run_config = {**self._config.to_flat(), **service}
        command = run_command(self._app, self._home, run_config, CONNECTION)
        self._run = self._federation.popen(command, self._log)

    def _strike(self, kind: str) -> bool:
        """Do a fault of a kind; False: there is nobody now to whom it could be done."""
        if kind in (SERVER_APP, SUPERLINK):
            return self._kill_server(kind)
        nodes = self._federation.nodes
        living = [number for number, node in sorted(nodes.items()) if node.poll() is None]
        if kind != NODE:
            living = [number for number in living if number not in self._ill]
        if not living:
            return False
        number = int(self._draws.choice(living))
        self._count(f"{kind} {number}" if kind == NODE else f"{kind} of node {number}", kind)
        if kind == NODE:
            nodes[number].kill()
            return True
        self._ill[number] = _Ailment(kind, self._seen, time.monotonic() + ILL_SECONDS)
        if kind == DISK:
            self._disks[number].fill()
        else:
            size = float(np.exp(self._draws.uniform(*np.log(CLOCK_SECONDS))))
            ahead = size * float(self._draws.choice([-1, 1]))
            clock.set_ahead(self._offset_file(number), ahead)
            self._say(f"its clock is {ahead:+.0f} s ahead")
        return True

    def _kill_server(self, kind: str) -> bool:
        servers = [process for process in processes_of(self._home) if _is_server_app(process)]
        superlink = self._federation.superlink
        if superlink is None or (kind == SERVER_APP and not servers):
            return False
        self._count(kind, kind)
        if kind == SUPERLINK:
            superlink.kill()
            superlink.wait()
        for process in servers:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._run.kill()
        self._run.wait()
        if kind == SUPERLINK:
            self._federation.start_superlink()
        self._submit()
        return True

    def _count(self, what: str, kind: str) -> None:
        self._tally.strikes[kind] += 1
        self._say(f"round {self._seen + 1}: {what}")

    def _states_on_disk(self) -> tuple[Checkpoint, Held]:
        """The server's checkpoint, and of each client what the server holds of it."""
        for _ in range(50):
            checkpoint = read_checkpoint(self._folder.checkpoint_path, experiment=self._experiment)
            held = []
            for client in range(self._experiment.num_clients):
                record = checkpoint.server.records.get(client, ClientRecord(0, NO_DIGEST))
                store = ClientStore(
                    self._states / str(client), token=checkpoint.token, client=client
                )
                held.append((record, store.load()))
            again = read_checkpoint(self._folder.checkpoint_path, experiment=self._experiment)
            if again.server.round == checkpoint.server.round:
                return checkpoint, held
        raise FedefError("the checkpoint changes faster than it can be read")

    def _check(self, checkpoint: Checkpoint, held: Held) -> None:
        error = mean_error(self._experiment, checkpoint, held)
        self._tally.rounds_checked += 1
        self._tally.largest_error = max(self._tally.largest_error, error)

    def _compare(self) -> None:
        """Compare the end with an inline run, and see that everybody was there.

        Raises
        ------
        FedefError
            If something is not as it must be.
        """
        missing = missing_by_round(self._folder)
        self._tally.lost_replies = sum(map(len, missing))
        self._tally.same_bits = same_bits_inline(self._experiment, self._folder)
        if not self._tally.same_bits:
            raise FedefError(
                "the model differs from that of the inline run with the same losses: an update "
                "was lost or applied twice"
            )
        for round, client in sorted(self._must_miss):
            if client not in missing[round - 1]:
                raise FedefError(f"round {round} took an update of client {client}, disk full")
        if missing[-1]:
            raise FedefError(f"clients {sorted(missing[-1])} did not come back")


def _lines(path: Path) -> dict[str, int]:
    """How often each line is in a file, which may be missing."""
    return dict(Counter(path.read_text(encoding="utf-8").split() if path.exists() else []))


def _is_server_app(process: int) -> bool:
    with suppress(OSError):
        return b"flwr-serverapp" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False
