"""A client's state on disk: whole or an error that names the file, one for each run, bounded."""

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedef import durable
from fedef.client_store import KEPT_RUNS, ClientStore
from fedef.config import Config
from fedef.durable import read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.experiment import Experiment

TOKEN = "0123456789abcdef" * 2
EXPERIMENT = Experiment.build(
    Config.from_flat(
        {
            "problem": "logistic",
            "data": "synthetic",
            "num-clients": 3,
            "partitioner": "iid",
            "method": "norm-ef21-sgdm",
            "compressor": "top-k",
            "k": 2,
            "num-rounds": 9,
        }
    )
)


def store(folder, *, token=TOKEN, client=1):
    return ClientStore(folder, token=token, client=client)


def state_after(rounds, client=1):
    server, session = EXPERIMENT.server(), EXPERIMENT.client(client)
    for _ in range(rounds):
        for task in server.begin_round([client]):
            server.receive(session.handle(task))
        server.end_round()
    return session.state


def bits(state):
    return {name: (a.dtype, a.tobytes()) for name, a in state.to_arrays().items()}


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_nothing_is_there_before_the_first_save(tmp_path):
    assert store(tmp_path / "not yet").load() is None
    assert files(tmp_path) == []


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_a_state_returns_bit_for_bit_with_its_pending_update(tmp_path, rounds):
    state = state_after(rounds)
    assert (state.pending is not None) == (rounds > 0)
    store(tmp_path).save(state)
    assert bits(store(tmp_path).load()) == bits(state)
    assert files(tmp_path) == [f"{TOKEN}/client-1.fdf"]


def test_nobody_else_reads_a_state(tmp_path):
    mask = os.umask(0)
    try:
        store(tmp_path / "deep" / "states").save(state_after(2))
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"deep": 0o700, "states": 0o700, TOKEN: 0o700, "client-1.fdf": 0o600}


def test_every_new_folder_is_flushed_into_the_one_above_it(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(durable, "sync_folder", lambda path: flushed.append(path.name))
    store(tmp_path / "deep" / "states").save(state_after(2))
    assert flushed == [tmp_path.name, "deep", "states", TOKEN]


def test_runs_and_clients_have_their_own_files(tmp_path):
    other = TOKEN[::-1]
    store(tmp_path).save(state_after(2))
    assert store(tmp_path, client=0).load() is None
    assert store(tmp_path, token=other).load() is None
    store(tmp_path, token=other).save(state_after(3))
    assert store(tmp_path).load().round == 2


@pytest.mark.parametrize("token", ["", "..", "../" * 10 + "etc", "A" * 32, TOKEN + "0", "x" * 99])
def test_a_token_that_is_not_one_never_becomes_a_path(tmp_path, token):
    with pytest.raises(ConfigError, match="names no run"):
        store(tmp_path, token=token)


@pytest.mark.parametrize("damage", ["changed", "cut off", "empty", "foreign"])
def test_a_damaged_file_is_named_and_never_a_start_from_zero(tmp_path, damage):
    store(tmp_path).save(state_after(2))
    path = store(tmp_path).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    contents = {"changed": data, "cut off": data[:-1], "empty": b"", "foreign": b"\x80\x04pickle"}
    path.write_bytes(contents[damage])
    with pytest.raises(ConfigError, match=r"client-1\.fdf.*corrupt.*on-lost-state decides"):
        store(tmp_path).load()


@pytest.mark.parametrize(
    "change", [{"client": 2}, {"run": TOKEN[::-1]}, {"format": 2}, None], ids=str
)
def test_a_file_of_somebody_else_is_refused(tmp_path, change):
    store(tmp_path).save(state_after(2))
    path = store(tmp_path).path
    arrays = read_arrays(path)
    owner = json.loads(arrays.pop("owner").tobytes())
    if change is not None:
        text = json.dumps({**owner, **change}).encode()
        arrays["owner"] = np.frombuffer(text, dtype=np.uint8)
    write_arrays(path, arrays)
    with pytest.raises(ConfigError, match=r"client-1\.fdf' cannot be used.*remove it"):
        store(tmp_path).load()


def test_a_full_disk_keeps_the_old_state_and_names_the_way_out(tmp_path, monkeypatch):
    old = state_after(2)
    store(tmp_path).save(old)

    def full(path: Path, data: bytes, **mode: int) -> None:
        path.with_name(f".{path.name}.9.part").write_bytes(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_atomically", full)
        with pytest.raises(ConfigError, match=r"client 1 cannot write.*No space left.*free space"):
            store(tmp_path).save(state_after(3))
    assert bits(store(tmp_path).load()) == bits(old)
    store(tmp_path).save(state_after(3))
    assert files(tmp_path) == [f"{TOKEN}/client-1.fdf"]


def test_the_folder_is_bounded_over_runs_and_rounds(tmp_path):
    """The runs written last stay; what is not a run's folder is never touched."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    state = state_after(2)
    for run in range(12):
        where = store(tmp_path, token=f"{run:032x}")
        where.save(state)
        os.utime(where.path.parent, ns=(run, run))
        where.save(replace(state, round=3))
    runs = {f"{run:032x}/client-1.fdf" for run in range(12 - KEPT_RUNS, 12)}
    assert set(files(tmp_path)) == {"mine/thesis.tex", *runs}
