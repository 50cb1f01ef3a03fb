"""From names of studies to a folder: the page, its numbers and its figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedef.errors import ConfigError
from fedef.run_folder import environment
from sims.reproduce import dro, fair, logistic, phase_retrieval, polynomial, resnet20, smoothness
from sims.reproduce.figures import png
from sims.reproduce.page import render
from sims.reproduce.study import Panel, Settings, Study

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


def reproduce(
    names: Sequence[str],
    *,
    quick: bool,
    out: Path,
    data_dir: Path | None,
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
    _make(out)
    studies: list[Study] = []
    not_run: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in selected:
        start = time.perf_counter()

        def tell(text: str, fraction: float, name: str = name) -> None:
            progress(name, text, fraction)

        tell("starting", 0.0)
        try:
            studies.append(STUDIES[name](Settings(quick, data_dir, tell)))
        except ConfigError as error:
            not_run[name] = str(error)
            tell("not run", 1.0)
            continue
        seconds[name] = time.perf_counter() - start
        tell(f"{seconds[name]:.0f} s", 1.0)
        # After each study: a full run takes long, and one that is interrupted leaves what is done.
        waiting = dict.fromkeys(selected[selected.index(name) + 1 :], "not yet")
        write(out, studies, quick=quick, not_run={**not_run, **waiting}, seconds=seconds)
    if not studies:
        raise ConfigError("; ".join(not_run.values()))
    return write(out, studies, quick=quick, not_run=not_run, seconds=seconds)


def write(
    out: Path,
    studies: Sequence[Study],
    *,
    quick: bool,
    not_run: Mapping[str, str],
    seconds: Mapping[str, float],
) -> Path:
    """Write the page, its numbers and the figures of the last study; return the page."""
    about = _flat(environment())
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for panel in studies[-1].panels:
        (figures / f"{panel.name}.png").write_bytes(png(panel))
    results = {
        "quick": quick,
        "seconds": {name: round(taken, 1) for name, taken in seconds.items()},
        "environment": about,
        "not-run": dict(not_run),
        "studies": [_as_data(study) for study in studies],
    }
    (out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    page = out / "index.html"
    html = render(studies, quick=quick, not_run=not_run, seconds=seconds, environment=about)
    page.write_text(html, encoding="utf-8")
    return page


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
