"""The same bits under ``flwr run`` on Flower's Ray backend as inline (slow: real processes)."""

import json
from pathlib import Path

import pytest

from fedef.config import Config
from fedef.errors import ConfigError, FedefError
from sims.flower_engine import flwr_run
from sims.flower_run import run_flower
from sims.inline_run import run_inline

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def without_transport(folder: Path) -> list[dict]:
    """Lines of rounds.jsonl less what only the transport decides."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "envelope-bytes")}
        for line in lines
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("participation", [1.0, 0.3])
def test_same_bits_as_inline(tmp_path, participation, seed):
    config = Config.from_flat(
        {"participation": participation, "seed": seed, "num-rounds": 5, "local-batch-size": 16}
    )
    seen = []
    flower = run_flower(config, tmp_path / "flower", on_round=seen.append)
    inline = run_inline(config, tmp_path / "inline")
    assert flower["model-sha256"] == inline["model-sha256"]
    assert without_transport(tmp_path / "flower") == without_transport(tmp_path / "inline")
    assert [line["round"] for line in seen] == [1, 2, 3, 4, 5]
    assert flower["envelope-bytes"] > 0


def test_local_steps_have_the_same_bits_as_inline(tmp_path):
    config = Config.from_flat(
        {
            "method": "fedavg",
            "num-clients": 3,
            "num-rounds": 3,
            "step-size": 0.2,
            "local-steps": 3,
            "local-batch-size": 16,
            "weight-decay": 0.01,
        }
    )
    flower = run_flower(config, tmp_path / "flower")
    inline = run_inline(config, tmp_path / "inline")
    assert flower["model-sha256"] == inline["model-sha256"]
    assert without_transport(tmp_path / "flower") == without_transport(tmp_path / "inline")


def test_the_bundle_of_the_repository_runs(tmp_path):
    """``flwr run .`` with the code packed from the root, not installed."""
    config = Config.from_flat({"num-rounds": 2, "num-clients": 3})
    out = tmp_path / "run"
    flwr_run(
        ROOT,
        run_config={**config.to_flat(), "out": str(out)},
        num_supernodes=3,
        log_path=tmp_path / "flower.log",
        result_path=out / "summary.json",
    )
    inline = run_inline(config, tmp_path / "inline")
    assert json.loads((out / "summary.json").read_text())["model-sha256"] == inline["model-sha256"]


def test_a_run_that_fails_says_why_and_ends_non_zero(tmp_path):
    """A node too many: the ServerApp raises, the launcher passes its words on."""
    config = Config.from_flat({"num-rounds": 2, "num-clients": 3})
    with pytest.raises(FedefError, match=r"partition-id: must be in \[0, num-clients=3\), got 3"):
        flwr_run(
            ROOT,
            run_config={**config.to_flat(), "out": str(tmp_path / "run")},
            num_supernodes=4,
            log_path=tmp_path / "flower.log",
            result_path=tmp_path / "run" / "summary.json",
        )


def test_bad_settings_start_nothing(tmp_path):
    with pytest.raises(ConfigError, match="k must be in"):
        run_flower(Config.from_flat({"k": 10**6}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
