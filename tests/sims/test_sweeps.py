"""Sweeps: what is planned, what is left on disk, and that no kill changes a result."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import sims
from fedef.config import Config, read_toml
from fedef.errors import ConfigError
from sims import cli, sweep_bench
from sims.examples import heterogeneity, k_against_bytes, step_size
from sims.sweeps import run_key as keys
from sims.sweeps.one_run import run_into
from sims.sweeps.plan import config_of, make_plan
from sims.sweeps.pool import enter
from sims.sweeps.run_key import run_key
from sims.sweeps.sweep import run_sweep
from sims.sweeps.tuning import choose

BASE = {"problem": "logistic", "data": "synthetic", "num-clients": 4, "partitioner": "iid"}
SMALL = {
    "name": "small",
    "seeds": 2,
    "tune": {"step-size": [0.1, 0.5]},
    "tune-seeds": [7],
    "tune-per": ["method"],
    "base": {**BASE, "num-rounds": 3},
    "axes": {
        "participation": [0.5, 1],
        "method": {
            "EF21": {"method": "norm-ef21", "k": [1, 3]},
            "dense": {"method": "nsgd"},
        },
    },
}
FLAGSHIP = Path(__file__).resolve().parents[2] / "sims" / "heterogeneity.toml"
TABLES = ("results.parquet", "curves.parquet")


def changed(**changes):
    return {**SMALL, **{key.replace("_", "-"): value for key, value in changes.items()}}


def tables(folder):
    return [pd.read_parquet(Path(folder) / name) for name in TABLES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    run_sweep(SMALL, out=folder, workers=0)
    return folder


# --- the plan ------------------------------------------------------------------------------------


def test_cells_are_the_product_of_the_axes_and_of_each_combinations_own():
    plan = make_plan(SMALL)
    expected = [
        {"participation": p, "method": m, "k": k}
        for p, (m, k) in product((0.5, 1.0), (("EF21", 1), ("EF21", 3), ("dense", None)))
    ]
    assert [cell.columns for cell in plan.cells] == expected
    assert plan.columns == ("participation", "method", "k", "step-size")
    assert plan.seeds == (0, 1)
    assert plan.axes == {"participation": (0.5, 1.0), "method": ("EF21", "dense")}


def test_default_seeds_are_five_and_default_tuning_is_per_cell():
    plan = make_plan({"base": BASE, "axes": {"k": [1, 2]}, "tune": {"step-size": [1.0]}})
    assert plan.seeds == (0, 1, 2, 3, 4)
    assert not set(plan.seeds) & set(plan.tuning.seeds)
    assert [plan.group(cell) for cell in plan.cells] == [(1,), (2,)]


def test_a_sweep_may_have_no_axes():
    (cell,) = make_plan({"base": BASE}).cells
    assert cell.columns == {}


BAD = {
    "a run's key on top": (changed(problem="logistic"), "put a run's keys under [base]"),
    "an unknown key": (changed(axes={"stepsize": [1]}), "'stepsize' with a list of values must"),
    "an unknown key in base": (changed(base={"setp": 1}), "unknown key 'setp'"),
    "a bad value": (changed(axes={"k": [1, 0]}), "k: input should be greater than or equal to 1"),
    "an empty axis": (changed(axes={"k": []}), "must be a list of values or a table"),
    "a half-named axis": (changed(axes={"m": {"k": 3}}), "must be a list of values or a table"),
    "a key set twice": (
        changed(axes={"k": [1], "method": {"a": {"k": 2}}}),
        "k is set by 'method' and by 'axis k'",
    ),
    "a tuned axis": (changed(axes={"step-size": [1]}), "by 'step-size' and by 'tune'"),
    "a seed": (changed(base={**BASE, "seed": 3}), "seed: is set by seeds"),
    "no seeds": (changed(seeds=0), "seeds: must be a number of seeds"),
    "the same seed twice": (changed(seeds=[1, 1]), "seeds: must be a number of seeds"),
    "shared seeds": (changed(tune_seeds=[1, 9]), "[1] are reported seeds too"),
    "an empty grid": (changed(tune={"step-size": []}), "tune: step-size must be a list"),
    "an unknown group": (changed(tune_per=["alpha"]), "tune-per: must be a list of"),
    "a value twice": (changed(axes={"k": [3, 3]}), "axes: k has a value twice, got [3, 3]"),
    "a combination's value twice": (
        changed(axes={"m": {"a": {"participation": [1, 1.0]}}}),
        "axes.m.a: participation has a value twice, got [1, 1.0]",
    ),
    "a tuned value twice": (changed(tune={"step-size": [1, 1.0]}), "tune: step-size has a value"),
    "an unknown metric": (changed(tune_metric="loss"), "tune-metric: must be one of"),
    "no table": (changed(base=3), "base: must be a table"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sweep_says_what_to_do_before_anything_is_run(name, tmp_path):
    source, expected = BAD[name]
    with pytest.raises(ConfigError) as error:
        run_sweep(source, out=tmp_path / "out", workers=0)
    assert expected in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_flagship_is_what_it_says():
    plan = make_plan(read_toml(FLAGSHIP))
    assert len(plan.cells) == 5 * (3 + 3 + 1 + 1)
    assert plan.num_runs == len(plan.cells) * (6 * 1 + 5) == 440
    assert len({plan.group(cell) for cell in plan.cells}) == 8
    assert plan.identity == ("dirichlet-alpha", "method", "k-fraction")
    gradients = set()
    for cell in plan.cells:
        config = config_of(cell, 0, plan.tuning.grid[0])
        gradients.add(config.num_rounds * config.local_steps * config.local_batch_size)
        assert config.num_rounds % config.eval_every == 0
        compressed = "EF21" in cell.columns["method"]
        assert (cell.columns["k-fraction"] is not None) == compressed
    assert gradients == {300 * 32}


# --- what it leaves ------------------------------------------------------------------------------


def test_every_run_is_a_row_and_a_folder(whole):
    results, curves = tables(whole)
    assert len(results) == 6 * 2 + 6 * 2  # cells x (grid x tuning seeds + seeds)
    assert set(results["status"]) == {"completed"}
    assert {path.name for path in (whole / "runs").iterdir()} == set(results["run"])
    assert set(curves["run"]) == set(results["run"])
    assert list(curves["round"][:3]) == [1, 2, 3]
    row = results.iloc[-1]
    summary = json.loads((whole / "runs" / row["run"] / "summary.json").read_text())
    assert row["final-loss"] == summary["final-loss"]
    assert row["uplink-bytes"] == summary["uplink-bytes"]
    last = curves[curves["run"] == row["run"]].iloc[-1]
    assert last["total-uplink-bytes"] == summary["uplink-bytes"]
    assert pd.read_parquet(whole / "timing.parquet")["wall-seconds"].gt(0).all()
    assert not {"seconds", "wall-seconds"} & {*results, *curves}


def test_seeds_are_paired_and_columns_say_what_was_run(whole):
    results, _ = tables(whole)
    reported = results[results["phase"] == "report"]
    assert reported.groupby("cell")["seed"].apply(list).tolist() == [[0, 1]] * 6
    for _, row in results.iterrows():
        config = json.loads(row["config"])
        assert config["seed"] == row["seed"]
        assert config["participation"] == row["participation"]
        assert config["step-size"] == row["step-size"]
        assert config["method"] == {"EF21": "norm-ef21", "dense": "nsgd"}[row["method"]]
        assert pd.isna(row["k"]) if row["method"] == "dense" else row["k"] == config["k"]


def test_the_best_mean_of_the_tuning_runs_is_what_is_reported(whole):
    results, _ = tables(whole)
    tuning, reported = (results[results["phase"] == phase] for phase in ("tune", "report"))
    means = tuning.groupby(["method", "step-size"])["final-loss"].mean()
    for method, rows in reported.groupby("method"):
        assert rows["step-size"].unique().tolist() == [means[method].idxmin()]
        chosen = tuning[(tuning["method"] == method) & tuning["chosen"]]
        assert chosen["step-size"].unique().tolist() == [means[method].idxmin()]
    assert results["edge"].all()  # a grid of two has no inside
    about = json.loads((whole / "sweep.json").read_text())
    assert [choice["group"] for choice in about["tune"]["choices"]] == [
        {"method": "EF21"},
        {"method": "dense"},
    ]


def test_tuning_prefers_runs_that_completed_and_flags_the_edge():
    plan = make_plan(changed(tune={"step-size": [1.0, 2.0, 3.0]}))

    def runs(*losses):
        return [{"status": "completed" if v < 9 else "diverged", "final-loss": v} for v in losses]

    records = {
        ("a",): [runs(3.0, 3.0), runs(2.0, 1.0), runs(0.1, 99.0)],
        ("b",): [runs(99.0), runs(99.0), runs(5.0)],
    }
    chosen = choose(plan.tuning, records)
    assert (chosen["a",].values, chosen["a",].edge) == ({"step-size": 2.0}, False)
    assert (chosen["b",].values, chosen["b",].edge) == ({"step-size": 3.0}, True)
    assert chosen["a",].scores == (3.0, 1.5, None)


def test_an_edge_is_the_least_or_largest_number_whatever_the_order():
    grid = {"step-size": [0.3, 1.0, 0.1], "schedule": ["constant", "inv-sqrt"]}
    tuning = make_plan(changed(tune=grid)).tuning
    sizes = [point["step-size"] for point in tuning.grid]
    assert tuning.ends == tuple(size in (0.1, 1.0) for size in sizes)


def test_a_metric_that_no_run_has_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no tuning run has 'test-accuracy'; .* final-loss"):
        run_sweep(changed(tune_metric="test-accuracy"), out=tmp_path / "out", workers=0)


def test_a_runs_key_is_of_the_content_of_its_files_not_of_their_place(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDEF_DATA", raising=False)

    def key(folder, **more):
        flat = {**BASE, "data": "rows.txt", "data-dir": str(tmp_path / folder), **more}
        return run_key(Config.from_flat(flat))

    for name, text in (("a", "1 1:1\n"), ("b", "1 1:1\n"), ("c", "1 1:2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.txt").write_text(text)
    assert key("a") == key("b") != key("c")
    assert key("nowhere") not in (key("a"), key("c"))
    before = key("a")
    (tmp_path / "a" / "rows.txt").write_text("1 1:1\n-1 1:2\n")
    assert key("a") != before
    for named in ("replay", "instance", "initial-point"):
        file = tmp_path / f"{named}.npz"
        without = key("b", **{named: str(file)})
        file.write_bytes(b"1")
        assert key("b", **{named: str(file)}) != without


def test_the_code_version_covers_what_a_run_imports():
    """Of sims; fedef is hashed as a whole."""
    root, seen = Path(keys.__file__).parents[2], set()
    waiting = {"sims/sweeps/one_run.py"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        names = re.findall(
            r"^from (sims[\w.]*) import (\w+)", (root / path).read_text(), flags=re.M
        )
        for module, name in names:
            for candidate in (f"{module}.{name}", module):
                file = candidate.replace(".", "/") + ".py"
                if (root / file).is_file():
                    waiting |= {file} - seen
    assert seen - {"sims/sweeps/plan.py"} == {f"sims/{name}" for name in keys.RUN_PATH}


# --- runs that end badly -------------------------------------------------------------------------

ROUGH = {
    "name": "rough",
    "seeds": 3,
    "base": {**BASE, "method": "ef21", "num-rounds": 2, "schedule": "constant"},
    "axes": {"case": {"good": {"step-size": 0.1}, "bad": {"k": 11}, "wild": {"step-size": 1e308}}},
}


def test_diverged_and_crashed_runs_are_rows_and_stop_nothing(tmp_path):
    results = run_sweep(ROUGH, out=tmp_path / "rough", workers=0)
    assert results["status"].tolist() == 3 * ["completed"] + 3 * ["failed"] + 3 * ["diverged"]
    assert results.loc[3, "error"].startswith("ConfigError: top-k: k must be in [1, d=10], got 11")
    assert results["final-loss"].notna().tolist()[:6] == 3 * [True] + 3 * [False]
    failed, tried = set(results["run"][3:6]), []

    def counted(flat, folder):
        tried.append(folder.name)
        run_into(flat, folder)

    before = [(tmp_path / "rough" / name).read_bytes() for name in TABLES]
    again = run_sweep(ROUGH, out=tmp_path / "rough", workers=0, work=counted)
    assert_frame_equal(results, again)
    assert [(tmp_path / "rough" / name).read_bytes() for name in TABLES] == before
    assert (len(tried), set(tried)) == (3, failed)


def test_a_run_that_the_machine_failed_completes_at_the_next_call(tmp_path, monkeypatch):
    source = {"seeds": 2, "base": {**BASE, "num-rounds": 2}}
    whole = run_sweep(source, out=tmp_path / "whole", workers=0)

    def full(*arguments):
        raise ConfigError("num-clients: the run needs more memory than there is")

    with monkeypatch.context() as patched:
        patched.setattr("sims.run_loop.require_memory", full)
        failed = run_sweep(source, out=tmp_path / "out", workers=0)
    assert failed["status"].tolist() == ["failed", "failed"]
    assert_frame_equal(run_sweep(source, out=tmp_path / "out", workers=0), whole)
    assert not list((tmp_path / "out" / "runs").glob(".*"))


def forbidden(flat, folder):
    raise AssertionError(f"{folder.name} was run again")


def test_nothing_that_ended_is_run_again(whole):
    before = [Path(whole / name).read_bytes() for name in TABLES]
    run_sweep(SMALL, out=whole, workers=0, work=forbidden)
    assert [Path(whole / name).read_bytes() for name in TABLES] == before


@pytest.mark.parametrize("stop", [0, 17])
def test_a_sweep_that_was_stopped_ends_with_the_same_tables(whole, tmp_path, stop):
    ran = []

    def interrupted(flat, folder):
        if len(ran) == stop:
            (folder.parent / f".{folder.name}.1.part").mkdir()  # what a kill leaves
            raise KeyboardInterrupt
        ran.append(folder.name)
        run_into(flat, folder)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_sweep(SMALL, out=out, workers=0, work=interrupted)
    assert len(tables(out)[0]) == stop

    def rest(flat, folder):
        assert folder.name not in ran
        run_into(flat, folder)

    run_sweep(SMALL, out=out, workers=0, work=rest)
    for name in TABLES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not list((out / "runs").glob(".*"))


def test_a_stopped_call_leaves_the_tables_that_hold_more_of_the_same_plan(tmp_path, monkeypatch):
    source = {"seeds": 2, "base": {**BASE, "num-rounds": 2}}
    out = tmp_path / "out"

    def counts():
        about = json.loads((out / "sweep.json").read_text())
        return about["complete"], about["planned"]

    def stopped(flat, folder):
        if flat["seed"] == 1:
            raise KeyboardInterrupt
        run_into(flat, folder)

    run_sweep(source, out=out, workers=0)
    assert counts() == (2, 2)
    before = [(out / name).read_bytes() for name in (*TABLES, "sweep.json")]
    monkeypatch.setattr(keys, "code_version", lambda: "changed")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(source, out=out, workers=0, work=stopped)
    assert [(out / name).read_bytes() for name in (*TABLES, "sweep.json")] == before
    with pytest.raises(KeyboardInterrupt):
        run_sweep({**source, "seeds": 3}, out=out, workers=0, work=stopped)
    assert counts() == (1, 3)
    assert len(tables(out)[0]) == 1


def test_a_run_or_a_folder_on_another_machine_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="choose a folder that all of them share"):
        run_sweep(ROUGH, out=tmp_path / "out", workers=0, work=lambda flat, folder: None)
    with pytest.raises(ConfigError, match=r"cannot enter .*nowhere.*all machines share"):
        enter(str(tmp_path / "nowhere"))


def test_more_seeds_run_only_what_is_new(whole, tmp_path):
    ran = []

    def counted(flat, folder):
        ran.append(flat["seed"])
        run_into(flat, folder)

    untuned = {key: value for key, value in SMALL.items() if not key.startswith("tune")}
    run_sweep(untuned, out=tmp_path / "out", workers=0)
    run_sweep({**untuned, "seeds": 3}, out=tmp_path / "out", workers=0, work=counted)
    assert ran == [2] * 6


def test_two_sweeps_do_not_share_a_folder(tmp_path):
    def second(flat, folder):
        with pytest.raises(ConfigError, match="another sweep is at work"):
            run_sweep(SMALL, out=tmp_path / "out", workers=0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(SMALL, out=tmp_path / "out", workers=0, work=second)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sims.inline_run.run_inline", lambda *args, **kwargs: {"status": "interrupted"}
    )
    with pytest.raises(KeyboardInterrupt):
        run_into(Config.from_flat(BASE).to_flat(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# --- the command line, the Python door and its examples ------------------------------------------


def test_the_command_shows_what_ended_and_how(tmp_path, monkeypatch, capsys):
    import tomli_w

    monkeypatch.chdir(tmp_path)
    Path("rough.toml").write_text(tomli_w.dumps({**ROUGH, "tune": {"momentum-eta": [0.1, 1.0]}}))
    monkeypatch.setattr(sys, "argv", ["fedef", "sweep", "rough.toml", "--workers", "0"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr().out
    assert not end.value.code
    assert "7 runs completed, 7 runs diverged, 7 runs failed" in printed
    assert "crashed: ConfigError: top-k: k must be in [1, d=10], got 11" in printed
    assert "3 cells use a value at an end of the tuning grid" in printed
    assert "results in runs/rough" in printed
    assert Path("runs/rough/results.parquet").is_file()


def test_a_bad_file_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fedef", "sweep", str(tmp_path / "none.toml")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "none.toml': No such file or directory" in capsys.readouterr().err


def test_the_door_is_the_same_code():
    assert sims.sweep is run_sweep


def test_the_examples_run_small(tmp_path, capsys):
    out = [str(tmp_path / name) for name in "abc"]
    steps = step_size.main(seeds=2, rounds=3, out=out[0], workers=0)
    assert steps["runs"].tolist() == [2] * 10
    costs = k_against_bytes.main(seeds=1, rounds=2, target=0.2, out=out[1], workers=0)
    assert costs["reached"].sum() > 0
    differences = heterogeneity.main(seeds=1, rounds=1, out=out[2], workers=0)
    assert differences["n"].tolist() == [1, 1, 1]
    assert "Holm" in capsys.readouterr().out


# --- Ray -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_worker_is_recorded_and_run_again_at_the_next_call(tmp_path):
    def dies_once(flat, folder):
        """Killed by the system at its first try, the third seed at every one."""
        marker = folder.parent.parent / f"tried-{folder.name}"
        if not marker.exists() or flat["seed"] == 2:
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        run_into(flat, folder)

    source = {"seeds": 3, "base": {**BASE, "num-rounds": 2}}
    results = run_sweep(source, out=tmp_path / "out", workers=2, work=dies_once)
    assert results["status"].tolist() == ["completed", "completed", "killed"]
    assert "WorkerCrashed" in results["error"][2]
    again = run_sweep(source, out=tmp_path / "out", workers=0)
    assert again["status"].tolist() == 3 * ["completed"]


@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_and_called_again_has_the_same_tables(whole, tmp_path):
    import tomli_w

    (tmp_path / "small.toml").write_text(tomli_w.dumps(SMALL))
    command = [sys.executable, "-m", "sims.cli", "sweep", "small.toml", "--workers", "2"]
    out = tmp_path / "runs" / "small"
    for wanted in (1, 9):  # runs that ended before the kill
        sweep = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
        while sweep.poll() is None and len(list((out / "runs").glob("[!.]*"))) < wanted:
            time.sleep(0.01)
        sweep.kill()
        sweep.wait()
        assert not (out / "results.parquet").exists()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for name in TABLES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()


# --- what it costs --------------------------------------------------------------------------------


def test_the_overhead_is_wall_time_over_the_runs_own():
    assert sweep_bench.Overhead(10, 2, 30.0, 5.0).ratio == pytest.approx(1.2)
    found = sweep_bench.measure(runs=2, seconds=0.02, workers=0)
    assert (found.runs, found.cores) == (2, 1)
    assert 0 < 2 * found.run_seconds < found.wall_seconds
