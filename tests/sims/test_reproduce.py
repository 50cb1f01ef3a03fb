"""The reproduction: rules of agreement, the fast EF21 on arrays, small studies, the page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fedef.compressors.top_k import top_k_indices
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems.registry import build_problem
from sims.reproduce import dro, logistic, phase_retrieval, polynomial, report, resnet20
from sims.reproduce.command import reproduce_command
from sims.reproduce.loops import Loop, Runs, figure_check, mean_check
from sims.reproduce.one_row import follow_rows, top_k_rows
from sims.reproduce.page import balance, render, tally
from sims.reproduce.runs import experiment_on, first_hit, follow, squared_gradient, thinned
from sims.reproduce.study import (
    IAN,
    UNIT,
    Comparison,
    Curve,
    Finding,
    Panel,
    Settings,
    Study,
    spread,
)
from sims.reproduce.verdict import (
    Check,
    all_inside,
    inside,
    same_digits,
    same_magnitude,
    same_rate,
    same_winner,
    within_deviations,
    within_relative,
)

# --- rules of agreement -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "printed", "agrees"),
    [
        (0.02620, ".026", True),
        (0.02651, ".026", False),
        (4490.4981, "4490.50", True),
        (4490.4949, "4490.50", False),
        (146143.3, "146143", True),
        (146143.6, "146143", False),
        (3.72e-2, "3.7e-02", True),
        (3.76e-2, "3.7e-02", False),
        (8.94034, "8.940", True),
    ],
)
def test_same_digits(ours, printed, agrees):
    assert same_digits(ours, printed) is agrees


def test_relative_and_deviations():
    assert within_relative(100.009, 100, 1e-4)
    assert not within_relative(100.011, 100, 1e-4)
    assert within_deviations(952 + 3 * 13, 952, 13)
    assert not within_deviations(952 + 3.01 * 13, 952, 13)
    assert not within_deviations(float("inf"), 952, 13)
    assert not within_deviations(float("nan"), 952, 13)


def test_ranges():
    assert inside(10.5, [10.0, 11.5], 0)
    assert not inside(9.9, [10.0, 11.5], 0)
    assert inside(9.9, [10.0, 11.5], 0.02)
    assert all_inside([11741, 11743], 11741, 11743, 0)
    assert not all_inside([11741, 12100], 11741, 11743, 0.02)


def test_magnitudes_and_winners():
    assert same_magnitude([3e-4], 3.1e-4)
    assert same_magnitude([3e-3], 3.1e-4)
    assert not same_magnitude([4e-3], 3.1e-4)
    assert same_magnitude([1e-6, 1e-3, 2.0], 1.5)
    assert same_magnitude([1e-15], 1e-30)
    assert not same_magnitude([1e-7], 1e-16)
    assert same_winner((1, 2), (3, 4))
    assert not same_winner((2, 1), (3, 4))


def test_counts_of_diverged_seeds():
    assert same_rate(3, 20, 2, 20)
    assert same_rate(9, 20, 7, 20)
    assert not same_rate(12, 20, 2, 20)
    assert not same_rate(0, 20, 7, 20)


def made_runs(finals, limit=50.0):
    values = np.column_stack([np.full(len(finals), 9.0), np.array(finals)])
    loop = Loop("made up", "sgd", 10, {"step_size": 1.0}, 0)
    return Runs(loop, np.array([0, 100]), values, limit)


def test_diverged_seeds_are_counted_and_not_averaged():
    runs = made_runs([3.6, 3.7, np.inf, 60.0])
    assert runs.diverged == 2
    assert runs.kept.tolist() == [3.6, 3.7]
    assert "2 of 4 diverged" in runs.summary()
    assert mean_check(runs, 3.65, 0.02, 10).agrees
    assert not mean_check(runs, 3.65, 0.02, 0).agrees
    far = mean_check(made_runs([3.6, 3.7]), 4.0, 0.02, 0)
    assert (far.agrees, far.why) == (False, "mean further than 3 standard deviations away")
    assert "all 2 diverged" in made_runs([np.inf, 99.0]).summary()
    assert not mean_check(made_runs([np.inf, 99.0]), 3.6, 0.1, 0).agrees


def test_a_figures_value_must_lie_in_our_range():
    runs = made_runs([3.6, 3.8, np.inf])
    assert figure_check(runs, 3.7, widened=0, why="no").agrees
    outside = figure_check(runs, 3.9, widened=0.02, why="the reason")
    assert (outside.agrees, outside.why) == (False, "the reason")
    assert "1 of 3 diverged" in outside.ours


def test_diverged_curves_are_drawn_and_never_dropped():
    curves = made_runs([3.6, np.inf, np.inf]).curves()
    assert len(curves) == 4
    assert sum(curve.faint for curve in curves) == 3
    assert all(np.isfinite(curve.y).all() for curve in curves)
    assert curves[-1].y[-1] > 1e200


def test_samples_are_counted_as_the_papers_do():
    spider = Loop("SPIDER", "spider", 64, {}, 0, period=20)
    assert spider.samples(3000, 40)[[1, 20, 40]].tolist() == [3000, 4216, 8432]
    assert spider.updates_within(3000, 27_000) == 120
    ian = Loop("IAN-SGD", "ian-sgd", 64, {}, 0, independent=4)
    assert ian.samples(3000, 2).tolist() == [0, 68, 136]
    assert ian.updates_within(3000, 27_000) == 397


def test_small_helpers():
    assert spread([2.0]) == "2"
    assert spread([3.0, 1.0, 2.0]) == "2 [1, 3]"
    assert spread([1.234e-5], scientific=True) == "1.2e-5"
    at = thinned(1000, 10)
    assert (at[0], at[-1], len(at)) == (0, 999, 10)
    assert thinned(5).tolist() == [0, 1, 2, 3, 4]
    assert first_hit(np.array([1.0, 1e-5, 1.0])) == 1
    assert first_hit(np.array([1.0, 1.0])) is None


# --- EF21 on arrays against the engine --------------------------------------------------------


def test_row_selection_is_the_compressors_with_ties():
    draws = np.random.default_rng(0)
    matrix = draws.integers(-3, 4, size=(200, 9)).astype(float)
    for k in (1, 2, 5, 9):
        chosen = top_k_rows(matrix, k)
        for row, mask in zip(matrix, chosen, strict=True):
            expected = np.zeros(9)
            expected[top_k_indices(row, k)] = row[top_k_indices(row, k)]
            np.testing.assert_array_equal(np.where(mask, row, 0.0), expected)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("method", ["ef21", "norm-ef21"])
def test_the_array_version_follows_the_engine(method, k):
    """80 rounds on the synthetic set, 20 clients: the same points to 1e-10."""
    settings = {
        "problem": "logistic",
        "data": "synthetic",
        "num_clients": 20,
        "compressor": "top-k",
        "k": k,
        "init": "full",
        "method": method,
        "schedule": "theory" if method == "ef21" else "horizon",
        "num_rounds": 100,
    }
    experiment = experiment_on(None, **settings)
    problem = experiment.problem
    points = []

    def keep(x):
        points.append(x)
        return 0.0

    follow(experiment, keep, range(81))
    norms = follow(
        experiment_on(None, **settings), squared_gradient(problem, experiment.weights), range(81)
    )
    step = logistic.theory_step(problem, k) if method == "ef21" else 1 / sqrt(101)
    arguments = {"k": k, "step_size": step, "normalized": method == "norm-ef21"}
    values, last = follow_rows(problem, rounds=80, **arguments)
    np.testing.assert_allclose(last, points[-1], rtol=0, atol=1e-10)
    np.testing.assert_allclose(values, norms, rtol=1e-8, atol=1e-14)
    _, middle = follow_rows(problem, rounds=37, **arguments)
    np.testing.assert_allclose(middle, points[37], rtol=0, atol=1e-10)


def test_the_page_measures_that_difference_on_its_own_data():
    problem = logistic.load(logistic.ROWS[0], None, seed=3)
    assert logistic.engine_difference(logistic.ROWS[0], problem) < 1e-12


# --- studies on small settings ----------------------------------------------------------------


def small_polynomial():
    """The first row with the target's neighbourhood cut short."""
    row = replace(polynomial.ROWS[0], shown=1200, grid=(500, 500))
    return polynomial.study(Settings(quick=True), rows=(row,))


def test_a_study_of_the_polynomial():
    study = small_polynomial()
    checks = {(check.what, check.printed): check for check in study.checks}
    assert checks["L1 = 1, ‖EF21‖, 1/(2c₁)", "1033–1114"].agrees
    # Within 1200 rounds EF21 does not get there, and it says so.
    late = checks["L1 = 1, EF21, theory step", "11741–11743"]
    assert (late.agrees, late.ours) == (False, "never")
    assert late.why
    paper = checks["L1 = 1", "2000"]
    assert (paper.agrees, paper.ours) == (False, "none")
    assert any(finding.holds for finding in study.findings)
    assert not all(finding.holds for finding in study.findings)


def test_runs_that_never_arrive_are_told_apart_from_the_order_of_those_that_do():
    """Two starts: EF21 hits at 3; one step of ||EF21|| hits at 1, the other once at 4 or never."""
    row = replace(polynomial.ROWS[2], horizon=1)
    falls = {hit: np.where(np.arange(6) < hit, 1.0, 1e-5) for hit in (1, 3, 4, 9)}
    curves = {(8, "ef21"): [falls[3]] * 2, (8, "2c1"): [falls[1]] * 2}

    def findings(*hits):
        every = {**curves, (8, "sqrt"): [falls[hit] for hit in hits]}
        arrive, before, *_ = polynomial._findings((row,), every, {8: [1]})
        return arrive, before

    arrive, before = findings(1, 9)
    assert not arrive.holds
    assert "3 of 4 runs" in arrive.text
    assert "1 of 2 starts with ‖EF21‖, 1/√(K+1), L1 = 8" in arrive.text
    assert before.holds
    assert "in 3 of 3 runs" in before.text
    arrive, before = findings(1, 4)
    assert (arrive.holds, before.holds) == (True, False)
    assert "in 3 of 4 runs" in before.text


def test_a_study_of_logistic_regression():
    row = replace(logistic.ROWS[0], cap=400, printed=logistic.ROWS[0].printed[2:3])
    study = logistic.study(Settings(quick=True), rows=(row,))
    parts = {check.part: check for check in study.checks}
    assert parts["smaller at K"].agrees
    assert parts["‖EF21‖ at K"].agrees
    wrong = replace(row, printed=(replace(row.printed[0], ef21=1e-9, gamma="9.0"),))
    study = logistic.study(Settings(quick=True), rows=(wrong,))
    parts = {check.part: check for check in study.checks}
    assert not parts["smaller at K"].agrees
    assert not parts["EF21 at K"].agrees
    assert not parts["γ of EF21"].agrees
    assert all(check.why for check in study.checks if check.agrees is False)


def test_a1a_is_padded_and_a9a_is_cut(data_dir):
    rows = {row.name: row for row in logistic.ROWS}
    for name in ("a9a", "a1a"):
        problem = logistic.load(rows[name], data_dir, seed=0)
        assert problem.data.features.shape == (1605, 123)
    assert same_digits(logistic.theory_step(problem, 12), ".0140")


def test_digits_and_deterministic_methods_of_phase_retrieval():
    """With a budget of a few updates only; the means cannot agree, and they do not."""
    study = phase_retrieval.study(Settings(quick=True), budget=3200)
    instance, deterministic, means = (c.checks for c in study.comparisons[:3])
    assert all(check.agrees for check in (*instance, *deterministic))
    assert not any(check.agrees for check in means)
    assert {panel.name for panel in study.panels} > {"phase-retrieval", "phase-retrieval-fitted"}


def test_digits_of_dro(data_dir):
    study = dro.study(Settings(quick=True, data_dir=data_dir), budget=2500)
    assert all(check.agrees for check in study.comparisons[0].checks)
    assert not any(check.agrees for check in study.comparisons[1].checks)


@pytest.mark.slow
@pytest.mark.parametrize("name", report.STUDIES)
def test_the_quick_study_ends_and_writes_its_section(name, tmp_path, data_dir):
    """What `fedef reproduce NAME --quick` does, to its end."""
    path = report.reproduce([name], quick=True, out=tmp_path, data_dir=data_dir)
    page, results = path.read_text(), json.loads((tmp_path / "results.json").read_text())
    (study,) = results["studies"]
    assert study["name"] == name
    assert f'<section id="{name}">' in page
    assert page.count('class="verdict') >= len(study["findings"]) >= 1
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert figures == {panel["name"] for panel in study["panels"]}
    assert all(
        check["why"]
        for table in study["comparisons"]
        for check in table["checks"]
        if check["agrees"] is False
    )
    require_self_contained(page)


def test_the_loss_of_resnet20_has_to_fall_in_a_long_run():
    def outcome(last, rounds):
        points = np.array([0.0, rounds])
        loss, accuracy = np.array([2.3, last]), np.array([0.1, 0.3])
        return resnet20.Outcome(points, loss, accuracy, 12_000, 500, 269_722)

    def verdicts(*outcomes):
        return [c.agrees for c in resnet20._checks(list(outcomes)) if "loss" in c.what]

    assert verdicts(outcome(2.0, 200), outcome(2.4, 200)) == [True, False]
    assert verdicts(outcome(2.0, 3), outcome(np.inf, 3)) == [None, None]


# --- the page ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """Every tag closed in its order, every address that would be loaded, every id."""

    VOID = frozenset({"meta", "br", "link", "img", "path", "use"})

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.ids, self.tags = [], [], [], []
        self.feed(text)
        self.close()

    def handle_startendtag(self, tag, attributes):
        self.note(tag, attributes)

    def handle_starttag(self, tag, attributes):
        self.note(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def note(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def made_study(name="made-up", agrees=(True, False, None)):
    x = np.arange(1.0, 6.0)
    panel = Panel(
        name=f"{name}-panel",
        title='Title <&"',
        x_label="round",
        y_label="f",
        curves=(Curve(x, 1 / x, 0, "bold"), Curve(x, 2 / x, 1, faint=True)),
        caption="n = 1 <seed>",
        level=0.3,
        dots=((2.0, 0.5, 0),),
        top=5.0,
        bottom=0.1,
    )
    checks = [Check(f"row {i}", "paper", "1", "2", a, "why <b>") for i, a in enumerate(agrees)]
    matrix = [replace(check, part=f"column {i}") for i, check in enumerate(checks)]
    return Study(
        name=name,
        title="A made-up study",
        about="About.",
        findings=(Finding(True, "one"), Finding(False, "two"), Finding(None, "three")),
        panels=(panel,),
        comparisons=(Comparison("n = 1", tuple(checks)), Comparison("m", tuple(matrix))),
        settings=("key=value",),
        notes=("A note.",),
    )


def written(tmp_path, studies, not_run=()):
    tmp_path.mkdir(exist_ok=True)
    done = [report.Done(s.name, s, "", 2.0, 1.0) for s in studies]
    return report.write(tmp_path, [*done, *not_run], quick=True)


def require_self_contained(text):
    page = Page(text)
    assert not page.open
    assert [a for a in page.addresses if not a.startswith("#")] == []
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)
    assert not {"script", "iframe", "link", "img", "object"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    targets = {a[1:] for a in page.addresses} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(page.ids)
    return page


def test_the_page_is_valid_and_loads_nothing(tmp_path):
    studies = [made_study("one"), made_study("two")]
    text = written(tmp_path, studies).read_text()
    page = require_self_contained(text)
    assert page.tags.count("svg") == 2
    assert text.startswith("<!doctype html>")
    assert 'name="viewport"' in text
    assert "prefers-color-scheme:dark" in text
    assert "why &lt;b&gt;" in text
    assert "<seed>" not in text
    assert "var(--c0)" in text
    assert "#010203" not in text
    assert str(tmp_path) not in text


def test_every_figure_is_there_as_png(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "STUDIES", {"polynomial": lambda settings: made_study("one")})
    report.reproduce([], quick=True, out=tmp_path, data_dir=None)
    (png,) = (tmp_path / "figures").iterdir()
    assert png.name == "one-panel.png"
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_numbers_are_beside_the_page(tmp_path):
    written(tmp_path, [made_study()], [report.Done("dro", None, "no data")])
    results = json.loads((tmp_path / "results.json").read_text())
    (study,) = results["studies"]
    assert [c["agrees"] for c in study["comparisons"][0]["checks"]] == [True, False, None]
    assert study["panels"][0]["curves"][0]["x"] == [1, 2, 3, 4, 5]
    assert results["not-run"] == {"dro": "no data"}
    assert (results["seconds"], results["cpu-seconds"]) == ({"made-up": 2.0}, {"made-up": 1.0})
    assert "numpy" in json.dumps(results["environment"])


def test_the_page_says_what_does_not_hold_and_what_was_not_run():
    text = render(
        [made_study()],
        quick=False,
        not_run={"dro": "the file is missing"},
        seconds={"made-up": 90.0},
        cpu_seconds={"made-up": 40.0},
        environment={"machine": "m"},
    )
    assert "✗ does not hold" in text
    assert "✓ holds" in text
    assert "Not run: the file is missing" in text
    assert "2 of 4 printed numbers agree" in text
    assert "Full run." in text


def test_statements_are_counted_by_paper():
    studies = [replace(made_study("one"), paper=IAN), replace(made_study("two"), paper=UNIT)]
    text = render(studies, quick=True, not_run={}, seconds={}, cpu_seconds={}, environment={})
    assert text.count("Of 3 statements 1 hold and 1 do not; 1 could not be judged.") == 2
    assert text.index(UNIT) < text.index(IAN)
    assert balance([*studies, made_study("three")]) == (
        "Of 9 statements 3 hold and 3 do not; 3 could not be judged."
    )


def test_the_tally_counts_what_was_judged():
    checks = made_study(agrees=(True, True, False, None)).comparisons[0].checks
    assert tally(checks) == "2 of 3 printed numbers agree"
    assert tally(checks[3:]) == "nothing printed to compare with"


def test_the_same_study_gives_the_same_page(tmp_path):
    first = written(tmp_path / "a", [made_study()]).read_bytes()
    assert written(tmp_path / "b", [made_study()]).read_bytes() == first


# --- the command ------------------------------------------------------------------------------


def app():
    made = typer.Typer()
    made.command()(reproduce_command)
    return made


def test_names():
    assert report.chosen([]) == report.chosen(["all"]) == tuple(report.STUDIES)
    assert report.chosen(["dro", "polynomial"]) == ("polynomial", "dro")
    with pytest.raises(ConfigError, match=r"no study 'drop'.*phase-retrieval"):
        report.chosen(["drop"])


def test_the_command_writes_the_page_and_tells_its_progress(tmp_path, monkeypatch):
    told = []

    def small(settings):
        settings.tell("working", 0.5)
        told.append((settings.quick, settings.data_dir))
        return made_study()

    monkeypatch.setattr(report, "STUDIES", {"polynomial": small})
    result = CliRunner().invoke(
        app(), ["polynomial", "--quick", "--out", str(tmp_path), "--data-dir", "data"]
    )
    assert result.exit_code == 0, result.output
    assert told == [(True, Path("data"))]
    assert (tmp_path / "index.html").is_file()
    assert "index.html" in result.output


def test_a_study_without_its_data_is_left_out_unless_it_is_the_only_one(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDEF_DATA", raising=False)
    monkeypatch.setattr(
        report, "STUDIES", {"polynomial": lambda settings: made_study(), "dro": dro.study}
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    options = {"quick": True, "data_dir": empty}
    page = report.reproduce(["all"], out=tmp_path / "all", **options)
    assert "Not run: data: no file" in page.read_text()
    with pytest.raises(ConfigError, match="no file for"):
        report.reproduce(["dro"], out=tmp_path / "dro", **options)


@pytest.mark.slow
def test_studies_at_once_give_the_page_of_one_after_the_other(tmp_path):
    """One that needs no data and one whose data is missing, each in a process of its own."""
    names, empty = ["smoothness", "dro"], tmp_path / "empty"
    empty.mkdir()
    told = []
    options = {"quick": True, "data_dir": empty, "progress": lambda *args: told.append(args)}
    report.reproduce(names, out=tmp_path / "both", jobs=2, **options)
    report.reproduce(names, out=tmp_path / "one", jobs=1, **options)
    both, one = (
        json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("both", "one")
    )
    assert both["studies"] == one["studies"]
    assert both["not-run"] == one["not-run"]
    assert list(both["not-run"]) == ["dro"]
    assert ("smoothness", "L1=4", pytest.approx(1 / 3)) in told
    with pytest.raises(ConfigError, match="jobs: must be at least 1, got 0"):
        report.reproduce(names, out=tmp_path / "none", jobs=0, **options)


def test_an_interrupted_run_leaves_the_studies_that_are_done(tmp_path, monkeypatch):
    def interrupted(settings):
        raise KeyboardInterrupt

    studies = {"polynomial": lambda settings: made_study(), "dro": interrupted}
    monkeypatch.setattr(report, "STUDIES", studies)
    with pytest.raises(KeyboardInterrupt):
        report.reproduce([], quick=True, out=tmp_path, data_dir=None)
    assert "Not run: not yet" in (tmp_path / "index.html").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [study["name"] for study in results["studies"]] == ["made-up"]
    assert results["not-run"] == {"dro": "not yet"}
    assert (tmp_path / "figures" / "made-up-panel.png").is_file()


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="out: cannot write"):
        report.reproduce(["polynomial"], quick=True, out=tmp_path / "file", data_dir=None)


def test_the_published_settings_are_valid_configurations():
    loops = [row.loop for row in (*phase_retrieval.STOCHASTIC, *dro.REPOSITORY)]
    loops += [row[0] for row in (*phase_retrieval.FITTED, *dro.FIGURE)]
    for loop in loops:
        keys = {key.replace("_", "-"): value for key, value in loop.keys().items()}
        assert Config.from_flat({"problem": "dro", "num-clients": 1, **keys}).method == loop.method


def test_the_problem_of_the_page_is_the_configured_one():
    values = {"problem": "logistic", "data": "breast_cancer", "num-clients": 569, "seed": 2}
    configured = build_problem(Config.from_flat(values))
    row = {row.name: row for row in logistic.ROWS}["wdbc"]
    np.testing.assert_array_equal(logistic.load(row, None, 2).x0, configured.initial_point())
