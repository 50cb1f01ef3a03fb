"""``fedef report``: what is read, averaged, drawn, and how the page behaves in a browser."""

import csv
import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats
from typer.testing import CliRunner

from fedef.config import Config
from fedef.errors import ConfigError
from sims.cli import app
from sims.inline_run import run_inline
from sims.page.drawing import png, svg
from sims.report import comparisons
from sims.report.averages import alone, over_bytes, over_rounds
from sims.report.build import build
from sims.report.charts import drawing
from sims.report.figures import sensitivity
from sims.report.groups import group
from sims.report.runs import Material, Run, read
from sims.sweeps.sweep import run_sweep

BASE = {"problem": "logistic", "data": "synthetic", "num-clients": 4, "num-rounds": 6}
EVIL = '<script>alert("&")</script>'
SWEEP = {
    "name": f"evil {EVIL}",
    "seeds": 3,
    "tune": {"step-size": [0.1, 0.5]},
    "tune-seeds": [7],
    "tune-per": ["method"],
    "base": {**BASE, "heterogeneity-every": 3},
    "axes": {
        "dirichlet-alpha": [0.5, 100.0],
        "method": {
            EVIL: {"method": "norm-ef21", "k-fraction": [0.1, 0.5]},
            "dense": {"method": "nsgd"},
        },
    },
}
METHODS = [f"{EVIL}, k-fraction 0.1", f"{EVIL}, k-fraction 0.5", "dense"]


def made_run(seed=0, status="completed", curves=None, numbers=None, **keys):
    config = Config.from_flat({"seed": seed, **{k.replace("_", "-"): v for k, v in keys.items()}})
    made = {name: np.array(values, dtype=float) for name, values in (curves or {}).items()}
    return Run(f"run{seed}", config.to_flat(), status, numbers or {}, made)


# --- averages --------------------------------------------------------------------------------


def test_rounds_that_one_run_did_not_measure_are_left_out():
    nan = np.nan
    runs = [
        made_run(0, curves={"round": [1, 2, 3, 4], "loss": [8, nan, 4, 2]}),
        made_run(1, curves={"round": [1, 2, 3], "loss": [6, 5, 2]}),
    ]
    average = over_rounds(runs, "loss")
    assert average.x.tolist() == [1, 3]
    assert average.mean.tolist() == [7, 3]
    assert average.n == 2


def test_at_equal_bytes_each_run_has_its_last_value():
    runs = [
        made_run(0, curves={"total-uplink-bytes": [10, 20, 30], "loss": [8, 4, 2]}),
        made_run(1, curves={"total-uplink-bytes": [12, 25, 28], "loss": [6, 2, 0]}),
    ]
    average = over_bytes(runs, "loss")
    assert average.x.tolist() == [12, 20, 28]  # not where only one of them has been
    assert average.mean.tolist() == [(8 + 6) / 2, (4 + 6) / 2, (4 + 0) / 2]


def test_long_curves_keep_their_ends():
    count = 100_000
    x, y = alone(
        made_run(curves={"round": range(count), "loss": np.arange(count) * 2.0}), "round", "loss"
    )
    assert len(x) <= 160
    assert (x[0], x[-1]) == (0, count - 1)
    assert (y == 2 * x).all()


# --- groups ----------------------------------------------------------------------------------


def test_runs_differ_by_condition_and_by_series():
    runs = tuple(
        made_run(seed, dirichlet_alpha=alpha, **method)
        for alpha in (10.0, 0.5)
        for method in ({"method": "norm-ef21", "k": 5}, {"method": "norm-ef21", "k": 50}, {})
        for seed in (1, 0)
    )
    groups = group(Material(runs, (), (), (), ()))
    assert groups.conditions == ("dirichlet-alpha 0.5", "dirichlet-alpha 10")
    assert [s.label for s in groups.series] == [
        "norm-ef21, k 5",
        "norm-ef21, k 50",
        "norm-ef21-sgdm",
    ]
    assert [(cell.condition, cell.series) for cell in groups.cells] == [
        (c, s) for c in range(2) for s in range(3)
    ]
    assert all([run.seed for run in cell.runs] == [0, 1] for cell in groups.cells)
    looks = [(s.color, s.dash, s.marker) for s in groups.series]
    assert len(set(looks)) == 3
    assert looks[0][0] == looks[1][0] != looks[2][0]


def test_a_diverged_run_counts_but_is_in_no_mean():
    runs = (
        made_run(0, numbers={"final-loss": 2.0}),
        made_run(1, "diverged", numbers={"final-loss": 1e9}),
        made_run(2, numbers={"final-loss": 4.0}),
    )
    (cell,) = group(Material(runs, (), (), (), ())).cells
    assert len(cell.runs) == 3
    assert cell.values("final-loss").tolist() == [2, 4]


# --- comparisons -----------------------------------------------------------------------------


def compared(accuracies, statuses=None):
    """Runs with the keys k = 1, 2, ... and one accuracy for each seed."""
    runs = []
    for k, of_seeds in enumerate(accuracies, start=1):
        for seed, accuracy in enumerate(of_seeds):
            curves = {
                "round": [1, 2],
                "total-uplink-bytes": [1e6 * k, 2e6 * k],
                "test-accuracy": [accuracy / 2, accuracy],
            }
            status = (statuses or {}).get((k, seed), "completed")
            numbers = {"test-accuracy": accuracy}
            runs.append(made_run(seed, status, curves, numbers, k=k))
    return group(Material(tuple(runs), (), (), (), ()))


def test_pairs_are_compared_on_the_seeds_of_both():
    groups = compared([[0.5, 0.6, 0.8], [0.4, 0.4, 0.5]], {(2, 2): "diverged"})
    table = comparisons.differences(groups)[0]
    ((first, second, n, difference, interval, p, holm),) = table.rows
    assert (first, second, n) == ("norm-ef21-sgdm, k 1", "norm-ef21-sgdm, k 2", "2 of 3")
    assert difference == "0.15"  # mean of 0.1 and 0.2
    # t_{0.975,1} s/sqrt(2) = 12.7062 * 0.05
    assert interval == "−0.4853 to 0.7853"
    assert p == holm == f"{2 * stats.t.sf(3, 1):.3f}"
    assert "over the 1 tests of the page" in table.caption


def test_the_same_difference_on_every_seed_is_a_dash():
    table = comparisons.differences(compared([[0.5, 0.75], [0.25, 0.5], [0.1, 0.9]]))[0]
    assert table.rows[0][3:] == ("0.25", "-", "-", "-")
    assert "over the 2 tests of the page. A dash: " in table.caption


def test_many_methods_are_compared_with_one():
    groups = compared([[0.1 * k, 0.2 * k] for k in range(1, 7)])
    label = groups.series[4].label
    for reference, second in (("", groups.series[0].label), (label, label)):
        rows = comparisons.differences(groups, reference)[0].rows
        assert [row[1] for row in rows] == [second] * 5
    with pytest.raises(ConfigError, match="reference: no method is 'k 99'; one of"):
        comparisons.differences(groups, "k 99")


def test_one_seed_gives_no_differences():
    assert comparisons.differences(compared([[0.5], [0.6]])) == {}


def test_what_a_target_costs():
    groups = compared([[0.9, 0.8], [0.4, 0.4]], {(2, 1): "diverged"})
    table = comparisons.costs(groups, 0, 0.4)
    assert [row[1:] for row in table.rows] == [
        ("2 of 2", "0", "0", "0", "1", "1"),
        ("2 of 2", "0", "0", "1", "2", "4"),  # the one that diverged had reached it before
    ]
    table = comparisons.costs(groups, 0)  # 95 % of 0.85
    assert [row[1:] for row in table.rows] == [
        ("1 of 2", "1", "0", "0", "2", "2"),
        ("0 of 2", "1", "0", "1", "> all", "> all"),
    ]


# --- figures ---------------------------------------------------------------------------------


def tuned_runs(*runs):
    """Charts of tuning runs (k, status, loss)."""
    made = [
        made_run(seed, status, numbers={"final-loss": loss} if loss else {}, k=k)
        for seed, (k, status, loss) in enumerate(runs)
    ]
    material = Material(tuple(made[:1]), tuple(made), ("k",), (), ())
    return sensitivity(group(material), 0, ("k",))


def test_a_method_that_never_completes_has_its_crosses_all_the_same():
    chart = tuned_runs((1, "diverged", None), (2, "failed", None))[0]
    assert chart.lines[0].pinned == (1.0, 2.0)
    shown = svg(drawing(chart, legend=True), name=chart.name, label=chart.alt)
    assert len(re.findall(r'id="[^"]*-s0-pinned\d"', shown)) == 2


def test_every_point_says_how_many_seeds_it_is_of():
    chart = tuned_runs((1, "completed", 2.0), (1, "completed", 4.0), (2, "completed", 1.0))[0]
    rows = list(chart.rows())
    assert [(row[1], row[-1]) for row in rows[1:]] == [("1", "2"), ("2", "1")]
    assert "n = 1 to 2 paired seeds" in chart.caption


@pytest.mark.parametrize("name", ['a"><script>', r"x\g<9>\1", "../../up"])
def test_names_in_a_picture_stay_names(name):
    def draw(ink):
        figure = Figure()
        axes = figure.add_subplot()
        axes.plot([1, 1e9], [1, 2], label=r"a $\nope$ b", gid="mean")
        axes.set(xscale="log", title=r"$\nope$ $")
        figure.legend()
        return figure

    shown = svg(draw, name=name, label=name)
    root = ElementTree.fromstring(shown)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) > 5
    assert all(re.fullmatch(r"[\w.-]+", part) for part in ids)
    assert "a $\\nope$ b" in "".join(root.itertext())
    assert "mathdefault" not in "".join(root.itertext())
    assert png(draw).startswith(b"\x89PNG")


# --- folders ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep with a run that diverged and one that crashed, as its tables say."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("report") / "sweep"
    run_sweep(SWEEP, out=folder, workers=0)
    results = pd.read_parquet(folder / "results.parquet")
    reported = results.index[results["phase"] == "report"]
    results.loc[reported[0], "status"] = "diverged"
    results.loc[reported[1], ["status", "error"]] = ["failed", f"boom {EVIL}"]
    results.to_parquet(folder / "results.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def page(sweep):
    return build([sweep], sweep.parent / "out")


def test_a_sweep_is_read_from_its_tables(sweep):
    material = read([sweep])
    assert (len(material.runs), len(material.tuning)) == (18, 12)
    assert material.tuned == ("step-size",)
    groups = group(material)
    assert [series.label for series in groups.series] == METHODS
    assert groups.conditions == ("dirichlet-alpha 0.5", "dirichlet-alpha 100")
    assert [len(cell.compared) for cell in groups.cells] == [1, 3, 3, 3, 3, 3]
    line = json.loads((sweep / "runs" / material.runs[2].name / "rounds.jsonl").open().readline())
    assert material.runs[2].curves["loss"][0] == line["loss"]


def test_folders_of_runs_give_the_same_as_their_sweep(sweep):
    runs = read([sweep / "runs"]).runs
    tabled = {run.name: run for run in read([sweep]).runs if run.ended_well}
    assert set(tabled) < {run.name for run in runs}
    for run in runs:
        if run.name in tabled:
            assert run.config == tabled[run.name].config
            for name, values in tabled[run.name].curves.items():
                np.testing.assert_array_equal(values, run.curves[name])
            assert run.numbers["final-loss"] == tabled[run.name].numbers["final-loss"]


def test_a_run_without_an_end_is_read_as_far_as_it_came(tmp_path):
    run_inline(Config.from_flat(BASE), tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (run,) = read([tmp_path / "run"]).runs
    assert run.status == "unfinished"
    assert run.numbers["final-loss"] == run.curves["loss"][-1]
    assert run.numbers["uplink-bytes"] == run.curves["total-uplink-bytes"][-1]


def test_equal_runs_count_once(tmp_path):
    for name, more in (("a", {}), ("b", {"eval-every": 2}), ("c", {"seed": 1})):
        run_inline(
            Config.from_flat({**BASE, "partitioner": "iid", "num-rounds": 2, **more}),
            tmp_path / name,
        )
    material = read([tmp_path])
    assert [run.name for run in material.runs] == ["a", "c"]
    assert material.notes == ("1 of the runs given equal others and are left out.",)


def test_a_failed_run_is_not_an_unfinished_one(tmp_path):
    bad = {**BASE, "data": "synthetic", "partitioner": "iid", "method": "ef21", "k": 11}
    results = run_sweep({"seeds": 1, "base": bad}, out=tmp_path / "sweep", workers=0)
    (run,) = read([tmp_path / "sweep" / "runs"]).runs
    assert (run.status, run.error) == ("failed", results["error"][0])


def altered(sweep, folder, **changes):
    """A copy of the sweep's tables with another sweep.json."""
    folder.mkdir()
    for name in ("results.parquet", "curves.parquet"):
        shutil.copy(sweep / name, folder)
    about = json.loads((sweep / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**about, **changes}))
    return folder


def test_an_unfinished_sweep_says_how_many_runs_it_has(sweep, tmp_path):
    material = read([altered(sweep, tmp_path / "sweep", planned=40)])
    assert material.missing == 10
    assert material.notes == (f"The sweep {SWEEP['name']} is not finished: 30 of 40 runs.",)
    assert read([sweep]).missing == 0


def test_keys_from_a_sweeps_folder_are_keys(sweep, tmp_path):
    tune = {"grid": [{'x" onload="alert(1)': 0.1}]}
    with pytest.raises(ConfigError, match="unknown key"):
        read([altered(sweep, tmp_path / "sweep", tune=tune)])


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a damaged sweep"])
def test_what_cannot_be_read_is_one_line(tmp_path, what):
    folder = tmp_path / "folder"
    if what != "nothing":
        folder.mkdir()
    if what == "a damaged sweep":
        (folder / "sweep.json").write_text('{"axes": {}')
    with pytest.raises(ConfigError, match=r"report: .*folder"):
        read([folder])


# --- the page --------------------------------------------------------------------------------


def test_every_figure_is_beside_the_page_as_png_and_csv(page):
    names = re.findall(r'href="figures/([^"]+)\.png"', page.read_text())
    assert len(names) == len(set(names)) >= 15
    assert {"c0-zeta2-rounds", "c1-partition", "final-final-loss-over-label-distance"} < set(names)
    for name in names:
        assert (page.parent / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (page.parent / "figures" / "c1-loss-rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["x"] for row in rows if row["series"] == "dense"] == list("123456")
    assert {row["n"] for row in rows} == {"3"}


def test_the_page_loads_nothing_and_escapes_what_it_shows(page):
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)|(src|srcset)=", text)
    addresses = [a for a in re.findall(r'href="([^"]*)"', text) if not a.startswith("#")]
    assert all(re.fullmatch(r"figures/[\w.-]+", address) for address in addresses)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_lost_runs_are_counted_and_shown(page):
    text = page.read_text()
    assert "<b>1</b>diverged" in text
    assert "<b>1</b>failed" in text
    assert "boom &lt;script&gt;" in text
    assert "1 of 3" in text
    assert "The 2 runs that did not complete are drawn thin" in text


@pytest.mark.slow
def test_the_command_writes_into_the_first_folder(tmp_path):
    for seed in range(2):
        config = Config.from_flat({**BASE, "seed": seed, "partitioner": "iid"})
        run_inline(config, tmp_path / f"run{seed}")
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--no-partitions"])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report" / "index.html").read_text()
    assert "n = 2 paired seeds" in text
    assert 'id="partitions"' not in text
    assert "bootstrap interval of the mean" in text
    again = CliRunner().invoke(app, ["report", str(tmp_path), "--no-partitions"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "report" / "index.html").read_text() == text


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("no chromium on this machine; install Debian's package 'chromium'")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=binary, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, page):
    """Open the page at a width; whatever it complains of or asks for fails the test."""
    tabs, complaints, asked = [], [], []

    def open_(width=1280, scheme="light"):
        tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        tabs.append(tab)
        return tab

    yield open_
    for tab in tabs:
        tab.close()
    assert complaints == []
    assert set(asked) == {page.as_uri()}


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_and_shows_its_plots(opened, width):
    tab = opened(width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    shown = [f.locator("svg[role=img]") for f in tab.locator("figure:visible").all()]
    assert len(shown) >= 9
    assert all(plot.bounding_box()["width"] > 250 for plot in shown)
    assert all(len(plot.get_attribute("aria-label")) > 40 for plot in shown)
    assert tab.locator('figure:visible g[id*="-s2-mean"] path').count() > 0


def test_a_method_is_switched_off_and_on_by_mouse_and_keyboard(opened):
    tab = opened()
    curves = tab.locator('g[id^="c0-loss-rounds-s2-"]')
    others = tab.locator('g[id^="c0-loss-rounds-s1-mean"]')
    assert curves.count() >= 2
    assert curves.first.is_visible()
    tab.get_by_role("checkbox", name="dense").click()
    assert not curves.first.is_visible()
    assert not curves.last.is_visible()
    assert others.first.is_visible()
    assert not tab.locator("tr.series-2").first.is_visible()
    tab.keyboard.press("Space")
    assert curves.first.is_visible()
    band = tab.locator('g[id^="c0-loss-rounds-s2-band"]').first
    assert band.is_visible()
    tab.get_by_role("checkbox", name="intervals").uncheck()
    assert not band.is_visible()
    assert tab.locator('g[id^="c0-loss-rounds-s2-mean"]').is_visible()


def test_conditions_axes_and_colours_are_chosen(opened):
    tab = opened(scheme="light")
    assert tab.locator("figure.condition-0").first.is_visible()
    tab.get_by_role("radio", name="dirichlet-alpha 100").check()
    assert not tab.locator("figure.condition-0").first.is_visible()
    assert tab.locator("figure.condition-1").first.is_visible()
    measured = tab.locator("#final-final-loss-over-zeta2-start-figure_1")
    assert not measured.is_visible()
    tab.get_by_role("radio", name="ζ² at the start (measured)").check()
    assert measured.is_visible()

    def page_color(of):
        return of.evaluate("getComputedStyle(document.body).backgroundColor")

    assert page_color(tab) == "rgb(255, 255, 255)"
    tab.get_by_role("radio", name="dark").check()
    assert page_color(tab) == "rgb(15, 19, 24)"
    dark = opened(scheme="dark")
    assert page_color(dark) == "rgb(15, 19, 24)"
    dark.get_by_role("radio", name="light").check()
    assert page_color(dark) == "rgb(255, 255, 255)"
