"""Which runs belong together: conditions (whose data) and series (which method)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sims.report.runs import NO_BITS, Material, Run

CONDITION_KEYS = (
    *("problem", "data", "train-examples", "test-examples", "eval-examples", "normalize"),
    *("regularization", "instance", "instance-seed", "l0", "l1", "warm-start", "weighting"),
    *("num-clients", "partitioner", "dirichlet-alpha", "classes-per-client"),
    *("min-partition-size", "participation"),
)
"""Keys that say what is solved, not how."""
_NO_SETTINGS = {"seed", *NO_BITS}


@dataclass(frozen=True)
class Series:
    """A method as it is compared: a colour, a dash and a marker."""

    index: int
    label: str
    color: int
    dash: int
    marker: int


@dataclass(frozen=True)
class Cell:
    """The runs of one series under one condition: they differ by their seed."""

    condition: int
    series: int
    runs: tuple[Run, ...]

    @property
    def compared(self) -> tuple[Run, ...]:
        """Those that completed."""
        return tuple(run for run in self.runs if run.ended_well)

    def values(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """A number of the summary, of the runs that completed and have it."""
        values = [run.numbers.get(name, np.nan) for run in self.compared]
        return np.array([value for value in values if np.isfinite(value)])


@dataclass(frozen=True)
class Groups:
    """The runs in order."""

    conditions: tuple[str, ...]
    """Labels; one empty label where the data are the same everywhere."""
    condition_keys: tuple[str, ...]
    """Keys that differ between conditions."""
    series: tuple[Series, ...]
    cells: tuple[Cell, ...]
    tuning: tuple[Cell, ...]
    """Cells of the tuning runs; the step sizes in one differ."""

    def of_condition(self, condition: int) -> tuple[Cell, ...]:
        """Cells of one condition."""
        return tuple(cell for cell in self.cells if cell.condition == condition)


def group(material: Material) -> Groups:
    """Sort runs by what they solve and by what they are."""
    every = (*material.runs, *material.tuning)
    varying = {
        key
        for key in every[0].config
        if key not in _NO_SETTINGS
        and key not in material.tuned
        and len({repr(run.config.get(key)) for run in every}) > 1
    }
    keys = tuple(key for key in CONDITION_KEYS if key in varying)
    condition_of = {id(run): _condition(run, keys) for run in every}
    name_of = {id(run): _name(run) for run in every}
    further = _further(every, name_of, varying - set(keys))
    series_of = {
        id(run): (
            name_of[id(run)],
            ", ".join(said(run, key) for key in further[name_of[id(run)]] if run.config[key] != ""),
        )
        for run in every
    }
    conditions = _ordered(every, condition_of, keys)
    series = _series(list(dict.fromkeys(series_of[id(run)] for run in every)))
    places = {label: index for index, label in enumerate(conditions)}
    ids = {pair: one.index for pair, one in series.items()}

    def cells(runs: Iterable[Run]) -> tuple[Cell, ...]:
        members: dict[tuple[int, int], list[Run]] = {}
        for run in runs:
            place = (places[condition_of[id(run)]], ids[series_of[id(run)]])
            members.setdefault(place, []).append(run)
        return tuple(
            Cell(*place, tuple(sorted(members[place], key=lambda run: run.seed)))
            for place in sorted(members)
        )

    return Groups(
        conditions, keys, tuple(series.values()), cells(material.runs), cells(material.tuning)
    )


def _condition(run: Run, keys: Sequence[str]) -> str:
    named = [value for axis, value in run.axes.items() if axis in CONDITION_KEYS]
    return ", ".join(named or [said(run, key) for key in keys])


def _name(run: Run) -> str:
    named = [value for axis, value in run.axes.items() if axis not in CONDITION_KEYS]
    return ", ".join(named) or str(run.config["method"])


def _further(
    runs: Sequence[Run], name_of: dict[int, str], varying: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """By name: the varying keys that it does not say."""
    found: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(name_of.values()):
        named = [run for run in runs if name_of[id(run)] == name]
        found[name] = tuple(
            key for key in sorted(varying) if len({repr(r.config.get(key)) for r in named}) > 1
        )
    return found


def said(run: Run, key: str) -> str:
    """A key's value in words."""
    value = run.config.get(key, "")
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    if key in ("problem", "data", "partitioner"):
        return shown
    if key == "num-clients":
        return f"{shown} client{'s' * (value != 1)}"
    return f"{key} {shown if shown != '' else 'not set'}"


def _ordered(
    runs: Sequence[Run], condition_of: dict[int, str], keys: Sequence[str]
) -> tuple[str, ...]:
    """Conditions by their keys' values, numbers as numbers."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(condition_of[id(run)], run)

    def place(label: str) -> list[tuple[bool, float, str]]:
        values = [first[label].config.get(key) for key in keys]
        return [
            (True, float(value), "") if isinstance(value, int | float) else (False, 0.0, str(value))
            for value in values
        ]

    return tuple(sorted(first, key=place))


def _series(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Series]:
    """Colour and marker by name, dash by what is varied further; by that alone for one name."""
    names = list(dict.fromkeys(name for name, _ in pairs))
    variants = list(dict.fromkeys(variant for _, variant in pairs))
    made = {}
    for index, (name, variant) in enumerate(pairs):
        color, dash = names.index(name), variants.index(variant)
        if len(names) == 1:
            color = dash
        elif len(variants) == 1:
            dash = color
        label = f"{name}, {variant}" if variant else name  # a key that is not set is not said
        made[name, variant] = Series(index, label, color % 6, dash % 6, color % 8)
    return made
