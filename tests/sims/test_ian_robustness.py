"""The robustness table: what is counted and compared, and what it says about our rule."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sims.ian_loop import Trajectory
from sims.ian_robustness import CASES, RULES, Row, robustness, robustness_table

PHASE = next(case for case in CASES if case.problem == "phase-retrieval")


ROOT = Path(__file__).resolve().parents[2]


def shown(rows):
    console = Console(record=True, width=180)
    console.print(robustness_table(rows))
    return console.export_text()


def test_the_rules_change_what_they_say():
    assert RULES["published"] == {}
    assert set(RULES["published, capped"]) == {"cap"}
    assert set(RULES["ours: memory, capped"]) == {"norm", "cap"}


def test_the_table_counts_and_compares():
    """Seeds 0 and 2 survive the published rule; a diverged run counts as inf."""

    def row(rule, finals):
        runs = [Trajectory(np.array([0, 64]), np.array([9.0, final]), 64) for final in finals]
        return Row(CASES[0], rule, tuple(runs), 50.0)

    published, ours = row("published", [4.0, np.inf, 4.4]), row("ours", [3.0, 5.0, 4.0])
    assert (published.diverged, published.finals) == (1, (4.0, 4.4))
    assert published.median_of_all == 4.4
    assert ours.median_where(published.alive) == 3.5
    assert published.median_where((True, True, False)) == np.inf
    text = shown([published, ours])
    for number in ("1/3", "4.2000", "3.5000"):
        assert number in text


def test_the_published_constants_end_where_the_specification_says():
    """Phase retrieval, IAN-SGD: f = 8.25 +- 0.04 at 27,000 samples; ours ends no higher."""
    rows = robustness([PHASE], ["published", "ours: memory, capped"], seeds=range(3))
    assert [row.diverged for row in rows] == [0, 0]
    assert np.mean(rows[0].finals) == pytest.approx(8.25, abs=0.12)
    assert np.mean(rows[1].finals) <= np.mean(rows[0].finals) + 0.04
    assert all(row.median_evaluations_to(10.0) < 15_000 for row in rows)
    assert "0/3" in shown(rows)


def test_the_cap_alone_ends_the_divergence(data_dir):
    """DRO 2024 at twice the figure's step, where every published run leaps off."""
    case = replace(CASES[0], settings=replace(CASES[0].settings, step_size=0.32))
    rules = ["published", "published, capped"]
    published, capped = robustness([case], rules, seeds=range(2), data_dir=str(data_dir))
    assert (published.diverged, capped.diverged) == (2, 0)
    assert capped.capped_share > 0


def test_the_readmes_table_is_the_file_that_the_command_wrote():
    readme = (ROOT / "README.md").read_text()
    written = json.loads((ROOT / "docs" / "ian_robustness.json").read_text())
    shown = [row for row in written["rows"] if row["case"] == CASES[0].name]
    assert {row["rule"] for row in shown} == set(RULES)
    for row in shown:
        of_all, where = float(row["median-of-all"]), float(row["median-where-published"])
        spelled = (
            f"| {row['rule']} | {row['diverged']} of {row['n']} | {of_all:.3f} | {where:.3f} | "
            f"{float(row['worst']):.2g} | {row['capped-percent']:.2f} |"
        )
        assert spelled in readme


@pytest.mark.slow
def test_ours_diverges_on_no_seed_at_any_published_step_and_ends_no_higher(data_dir):
    """DRO 2024, gamma = 0.16, 0.13, 0.14: medians over all 20 seeds and over those that survive."""
    rules = ["published", "published, capped", "ours: memory, capped"]
    rows = robustness(CASES[:3], rules, seeds=range(20), data_dir=str(data_dir))
    for published, capped, ours in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert 3 <= published.diverged <= 7
        assert capped.diverged == ours.diverged == 0
        assert ours.median_of_all <= np.median(published.finals)
        assert ours.median_where(published.alive) <= np.median(published.finals)
        assert ours.capped_share < 0.005
