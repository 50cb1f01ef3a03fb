"""The forecast of a run's memory: its formulas, against what a run really holds, and a refusal."""

import gc
import sys
import tracemalloc
from dataclasses import replace

import pytest

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from sims import engines, memory, run_loop
from sims.engine import InlineEngine
from sims.inline_run import run_inline
from sims.memory import (
    OBJECTS_BYTES,
    WORKER_BYTES,
    available_bytes,
    forecast,
    require_memory,
    spelled,
)


def build(**settings) -> Experiment:
    flat = {
        "problem": "digits-softmax",
        "partitioner": "shared",
        "num-clients": 1000,
        "participation": 0.05,
        "num-rounds": 20,
        "eval-every": 0,
        **{key.replace("_", "-"): value for key, value in settings.items()},
    }
    return Experiment.build(Config.from_flat(flat))


def test_the_parts_of_a_small_run_by_hand():
    """One client, four rounds, top-k with k = 6 of d = 650, float32."""
    experiment = build(num_clients=1, participation=1.0, num_rounds=4, method="norm-ef21", k=6)
    told = forecast(experiment)
    assert (told.clients, told.num_clients, told.workers) == (1, 1, 0)
    held, pending = 4 * 6 * (4 + 4), 6 * (4 + 8)
    assert told.state_bytes == held + pending + OBJECTS_BYTES
    assert told.checkpoint_bytes == 3 * (held + pending)
    momentum = build(num_clients=1, participation=1.0, num_rounds=4, k=6)
    assert forecast(momentum).state_bytes == told.state_bytes + 2 * 650 * 4
    long = build(num_clients=1, participation=1.0, num_rounds=400, method="norm-ef21", k=6)
    assert forecast(long).state_bytes == 650 * 4 + pending + OBJECTS_BYTES
    none = build(num_clients=1, participation=1.0, method="sgd")
    assert forecast(none).state_bytes == 650 * 4 + OBJECTS_BYTES


def test_workers_hold_the_data_again():
    told = forecast(build(), workers=3, worker_bytes=10**9)
    alone = replace(told, workers=0)
    assert told.needed_bytes - alone.needed_bytes == 3 * (10**9 + told.model_bytes)
    assert "again in each of 3 workers, 1 GB each" in str(told)


def test_workers_without_clients_are_not_started():
    assert forecast(build(num_clients=2, participation=1.0), workers=64).workers == 2


@pytest.mark.parametrize("loaded", [False, True])
def test_a_worker_holds_its_libraries_and_what_building_adds(monkeypatch, loaded):
    """Where torch was there before the build, its growth is not the worker's."""
    sizes = iter([300, 300 + 70])
    monkeypatch.setattr(memory, "held_bytes", lambda: next(sizes))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", memory)
    monkeypatch.setattr(memory.Experiment, "build", lambda config: config)
    assert memory.build_measured("built") == ("built", 370 if loaded else WORKER_BYTES + 70)


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({}, 4),
        ({"client_resources": "num_cpus=2"}, 2),
        ({"client_resources": "num_cpus=0.5"}, 4),
        ({"workers": 9}, 9),
        ({"ray_address": "auto"}, 0),
    ],
)
def test_the_workers_of_this_machine_are_those_that_have_room(monkeypatch, options, workers):
    monkeypatch.setattr(engines.os, "sched_getaffinity", lambda _: range(4))
    assert engines.local_workers("ray", options) == workers
    assert engines.local_workers("inline", options) == 0


@pytest.mark.parametrize("method", ["norm-ef21", "norm-ef21-sgdm"])
@pytest.mark.parametrize("participation", [0.1, 0.4])
def test_it_is_a_bound_that_is_not_far_from_what_a_run_holds(method, participation):
    experiment = build(method=method, num_clients=50, participation=participation, k_fraction=0.02)
    engine, told = InlineEngine(experiment), forecast(experiment)
    engine.round([0])  # what is made once
    gc.collect()
    tracemalloc.start()
    for _ in range(20):
        engine.round()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(engine.clients) == pytest.approx(told.clients, rel=0.1)
    assert 0.4 * told.state_bytes < held < 1.05 * (told.state_bytes + told.model_bytes)


def test_clients_that_are_never_asked_cost_nothing():
    few, many = (build(num_clients=n, participation=20 / n) for n in (10_000, 100_000))
    one, other = forecast(few), forecast(many)
    assert other.state_bytes == pytest.approx(one.state_bytes, rel=0.02)


def test_a_run_that_does_not_fit_is_refused_with_numbers_and_leaves_no_folder(
    tmp_path, monkeypatch
):
    config = Config.from_flat({"problem": "logistic", "data": "synthetic", "num-clients": 4})
    told = []
    monkeypatch.setattr(run_loop, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"of states \(4 of 4 clients.* 1 kB are available; what"):
        run_inline(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError):
        run_loop.start_run(
            config,
            tmp_path / "run",
            open_engine=lambda *_: pytest.fail("refused before"),
            name="inline",
            on_forecast=told.append,
        )
    assert told[0].num_clients == 4
    require_memory(told[0], told[0].needed_bytes)
    with pytest.raises(ConfigError, match="available"):
        require_memory(told[0], told[0].needed_bytes - 1)


@pytest.mark.parametrize("limit", ["5000000", "max"])
def test_a_containers_limit_counts_but_for_cached_files(tmp_path, monkeypatch, limit):
    files = {
        "memory.max": limit,
        "memory.current": "4000000",
        "memory.stat": "anon 1\ninactive_file 700000\nfile 800000",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    group = (tmp_path, "memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(memory, "_CGROUPS", (group,))
    if limit == "max":
        assert available_bytes() > 2**20
    else:
        assert available_bytes() == 5_000_000 - 4_000_000 + 700_000


def test_what_is_available_is_a_number_of_this_machine():
    assert 2**20 < available_bytes() < 2**50
    assert spelled(1234) == "1.23 kB"
    assert spelled(5e12) == "5000 GB"
