"""From names of studies to a folder: the page, its numbers and its figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fedef.errors import ConfigError
from fedef.run_folder import environment
from sims.reproduce import dro, fair, logistic, phase_retrieval, polynomial, resnet20, smoothness
from sims.reproduce.figures import png
from sims.reproduce.page import render
from sims.reproduce.study import Panel, Settings, Study, Tell

STUDIES: dict[str, Callable[[Settings], Study]] = {
    "polynomial": polynomial.study,
    "smoothness": smoothness.study,
    "logistic": logistic.study,
    "phase-retrieval": phase_retrieval.study,
    "dro": dro.study,
    "fair": fair.study,
    "resnet20": resnet20.study,
}
"""By name, in the order of the page."""
ALL = "all"

Progress = Callable[[str, str, float], None]
"""(study, what it is doing, fraction done)."""


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The studies that the names mean, in the order of the page; no name or 'all': every one.

    Raises
    ------
    ConfigError
        For an unknown name.
    """
    for name in names:
        if name != ALL and name not in STUDIES:
            known = ", ".join([*STUDIES, ALL])
            raise ConfigError(f"reproduce: no study {name!r}; one of {known}")
    if not names or ALL in names:
        return tuple(STUDIES)
    return tuple(name for name in STUDIES if name in names)


@dataclass(frozen=True)
class Done:
    """A study that was run, or why it was not."""

    name: str
    study: Study | None
    why_not: str = ""
    seconds: float = 0.0
    """Of the clock."""
    cpu_seconds: float = 0.0
    """Of the processor."""


def reproduce(
    names: Sequence[str],
    *,
    quick: bool,
    out: Path,
    data_dir: Path | None,
    jobs: int = 1,
    progress: Progress = lambda study, text, fraction: None,
) -> Path:
    """Run the studies and write ``index.html``, ``results.json`` and ``figures/*.png`` into `out`.

    Parameters
    ----------
    names
        Of studies, or 'all'.
    quick
        Fewer seeds and shorter grids.
    data_dir
        Folder of the data files; None: FEDEF_DATA. A study whose files are missing is left out, and
        the page says so.
    jobs
        Processes; with more than one, as many studies run at once. The numbers are the same.

    Returns
    -------
    The page.

    Raises
    ------
    ConfigError
        If a name is unknown, the folder cannot be written, or no study could be run.

    Notes
    -----
    The page is written anew after each study, so an interrupted run leaves those that are done.
    """
    selected = chosen(names)
    if jobs < 1:
        raise ConfigError(f"jobs: must be at least 1, got {jobs}")
    _make(out)
    done: dict[str, Done] = {}
    page = out / "index.html"
    # After each study: a full run takes long, and one that is interrupted leaves what is done.
    for one in _run_all(selected, quick=quick, data_dir=data_dir, jobs=jobs, progress=progress):
        done[one.name] = one
        if one.study is None:
            progress(one.name, "not run", 1.0)
        else:
            took = f"{one.seconds:.0f} s, {one.cpu_seconds:.0f} s of processor"
            progress(one.name, took, 1.0)
            for panel in one.study.panels:
                _draw(out, panel)
        page = write(out, [done.get(name, Done(name, None, "not yet")) for name in selected], quick)
    if all(one.study is None for one in done.values()):
        raise ConfigError("; ".join(one.why_not for one in done.values()))
    return page


def run_one(name: str, quick: bool, data_dir: Path | None, tell: Tell) -> Done:
    """Run one study; a missing file is not an error here."""
    tell("starting", 0.0)
    clock, processor = time.perf_counter(), time.process_time()
    try:
        study = STUDIES[name](Settings(quick, data_dir, tell))
    except ConfigError as error:
        return Done(name, None, str(error))
    return Done(name, study, "", time.perf_counter() - clock, time.process_time() - processor)


def _run_all(
    selected: Sequence[str], *, quick: bool, data_dir: Path | None, jobs: int, progress: Progress
) -> Iterator[Done]:
    if jobs == 1 or len(selected) == 1:
        for name in selected:
            yield run_one(name, quick, data_dir, partial(progress, name))
        return
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        told = manager.Queue()
        waiting = {
            pool.submit(run_one, name, quick, data_dir, partial(_put, told, name))
            for name in selected
        }
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not told.empty():
                    progress(*told.get())
                for future in ended:
                    yield future.result()
        except BaseException:
            # An interrupt reaches the workers too; studies that have not begun must not begin.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _put(told: Any, name: str, text: str, fraction: float) -> None:
    told.put((name, text, fraction))


def write(out: Path, done: Sequence[Done], quick: bool) -> Path:
    """Write the page and its numbers; return the page."""
    about = _flat(environment())
    studies = [one.study for one in done if one.study is not None]
    not_run = {one.name: one.why_not for one in done if one.study is None}
    seconds = {one.name: one.seconds for one in done if one.study is not None}
    cpu = {one.name: one.cpu_seconds for one in done if one.study is not None}
    results = {
        "quick": quick,
        "seconds": {name: round(taken, 1) for name, taken in seconds.items()},
        "cpu-seconds": {name: round(taken, 1) for name, taken in cpu.items()},
        "environment": about,
        "not-run": not_run,
        "studies": [_as_data(study) for study in studies],
    }
    (out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    page = out / "index.html"
    html = render(
        studies, quick=quick, not_run=not_run, seconds=seconds, cpu_seconds=cpu, environment=about
    )
    page.write_text(html, encoding="utf-8")
    return page


def _draw(out: Path, panel: Panel) -> None:
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{panel.name}.png").write_bytes(png(panel))


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").touch()
    except OSError as error:
        raise ConfigError(
            f"out: cannot write to {str(out)!r}: {error.strerror}; choose another folder"
        ) from None


def _as_data(study: Study) -> dict[str, Any]:
    data = asdict(study)
    data["panels"] = [_panel_data(panel) for panel in study.panels]
    return data


def _panel_data(panel: Panel) -> dict[str, Any]:
    """Curves as lists; a value that is not finite is null."""
    data = {key: value for key, value in vars(panel).items() if key != "curves"}
    data["curves"] = [
        {
            "label": curve.label,
            "faint": curve.faint,
            "color": curve.color,
            "x": [float(f"{value:.6g}") for value in curve.x],
            "y": [_finite(value) for value in curve.y],
        }
        for curve in panel.curves
    ]
    return data


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if abs(value) < float("inf") else None


def _flat(about: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in about.items():
        if isinstance(value, Mapping):
            flat[key] = ", ".join(f"{name} {item}" for name, item in value.items())
        else:
            flat[key] = str(value)
    return flat
