"""Stop rules: which one ends a run, and that a run which met one is over."""

import json

import pytest

from fedef.config import Config
from fedef.stopping import stop_rule
from sims.inline_run import resume_inline, run_inline

FAST = {"problem": "digits-softmax", "num-clients": 4, "num-rounds": 12, "k": 20}


def line(**changes):
    return {"round": 3, "test-accuracy": 0.5, "grad-norm": 0.25, **changes}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, None),
        ({"num-rounds": 4}, None),
        ({"num-rounds": 3}, "num-rounds"),
        ({"stop-accuracy": 0.51}, None),
        ({"stop-accuracy": 0.5}, "stop-accuracy"),
        ({"stop-gradient-norm": 0.24}, None),
        ({"stop-gradient-norm": 0.25}, "stop-gradient-norm"),
        ({"stop-uplink-bytes": 101}, None),
        ({"stop-uplink-bytes": 100}, "stop-uplink-bytes"),
        ({"stop-uplink-bytes": 100, "stop-accuracy": 0.5}, "stop-accuracy"),
    ],
)
def test_a_rule_holds_from_its_bound_on(rules, expected):
    assert stop_rule(Config.from_flat(rules), line(), uplink_bytes=100) == expected


def test_what_was_not_evaluated_stops_nothing():
    rules = Config.from_flat({"stop-accuracy": 1e-9, "stop-gradient-norm": 1e9})
    nothing = line(**{"test-accuracy": None, "grad-norm": None})
    assert stop_rule(rules, nothing, uplink_bytes=0) is None


def rounds(folder):
    return [json.loads(text) for text in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_run_is_the_beginning_of_the_run_without_rules(tmp_path):
    """Targets taken from a whole run end the same run where it first meets them."""
    whole = run_inline(Config.from_flat(FAST), tmp_path / "whole")
    lines = rounds(tmp_path / "whole")
    assert whole["stopped-by"] == "num-rounds"
    best = max(lines[:8], key=lambda line: line["test-accuracy"])
    met = next(i for i in lines if i["test-accuracy"] >= best["test-accuracy"])["round"]
    spent = sum(i["uplink-bytes"] for i in lines[:5])
    for rule, value, end in (
        ("stop-accuracy", best["test-accuracy"], met),
        ("stop-uplink-bytes", spent, 5),
        ("stop-uplink-bytes", spent + 1, 6),
    ):
        out = tmp_path / f"{rule}{value}"
        summary = run_inline(Config.from_flat({**FAST, rule: value}), out)
        assert (summary["rounds"], summary["stopped-by"]) == (end, rule)
        kept = [{**i, "seconds": 0} for i in rounds(out)]
        assert kept == [{**i, "seconds": 0} for i in lines[:end]]


def test_a_run_that_met_its_rule_stays_over(tmp_path):
    rules = Config.from_flat({**FAST, "stop-uplink-bytes": 1})
    first = run_inline(rules, tmp_path / "run")
    again = resume_inline(tmp_path / "run")
    assert first["rounds"] == again["rounds"] == 1
    assert again["stopped-by"] == "stop-uplink-bytes"


def test_a_run_may_leave_no_state(tmp_path):
    run_inline(Config.from_flat(FAST), tmp_path / "run", keep_state=False, checkpoint_every=1)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.toml",
        "environment.json",
        "rounds.jsonl",
        "summary.json",
    }
