"""``from sims import run``: the same runs from a script, as values and exceptions."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import sims
from fedef.config import Config
from fedef.errors import ConfigError
from sims import run
from sims.inline_run import run_inline

KEYS = {"problem": "logistic", "data": "synthetic", "num-clients": 4, "partitioner": "iid"}


def test_a_result_has_the_rounds_the_summary_and_the_model(tmp_path):
    result = run(KEYS, num_rounds=4, eval_every=2, out=tmp_path / "run")
    lines = [json.loads(t) for t in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert result.folder == tmp_path / "run"
    assert result.rounds.index.tolist() == [1, 2, 3, 4]
    assert result.rounds.index.name == "round"
    assert result.rounds["uplink_bytes"].tolist() == [line["uplink-bytes"] for line in lines]
    assert result.rounds["loss"].isna().tolist() == [True, False, True, False]
    assert set(result.rounds.columns) == {n.replace("-", "_") for n in lines[0]} - {"round"}
    assert result.summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert all(np.isfinite(part).all() for part in result.model.values())


def test_every_way_to_say_the_configuration_is_the_same_run(tmp_path):
    config = Config.from_flat({**KEYS, "num-rounds": 3})
    shas = {
        run(config).summary["model-sha256"],
        run({**KEYS, "num-rounds": 3}).summary["model-sha256"],
        run({"problem": "logistic", "num_clients": 4}, data="synthetic", partitioner="iid",
            num_rounds=3).summary["model-sha256"],
        run_inline(config, tmp_path / "inline")["model-sha256"],
    }  # fmt: skip
    assert len(shas) == 1


def test_a_temporary_folder_does_not_stay():
    assert run(KEYS, num_rounds=1).folder is None


def test_a_run_that_diverges_is_a_result():
    result = run(problem="polynomial", num_clients=1, k=1, method="gd", step_size=1e9,
                 schedule="constant", num_rounds=50)  # fmt: skip
    assert result.summary["status"] == "diverged"
    assert isinstance(result.rounds, pd.DataFrame)


def test_the_callback_sees_each_line_and_may_stop_the_run():
    seen = []

    def on_round(line):
        seen.append(line["round"])
        if line["round"] == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(KEYS, num_rounds=5, on_round=on_round)
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_round": 3}, "num-round.*num-rounds"),
        ({"engine": "spark"}, "engine: must be inline, ray or flower"),
        ({"workers": 2}, "workers: only the ray engine has it"),
    ],
)
def test_mistakes_are_exceptions(arguments, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        run(KEYS, out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_the_package_itself_loads_nothing():
    program = "import sims, sys; print({'pandas', 'ray', 'torch', 'fedef'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'sims' has no attribute 'rum'"):
        sims.rum  # noqa: B018
