"""The Life Expectancy table as the authors of IAN-SGD prepare it (arXiv:2410.14054, code)."""

from __future__ import annotations

import bz2
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedef.errors import ConfigError
from fedef.vectors import IntVector, is_finite

FILE = "life_expectancy.csv"
"""Name in the data folder, with or without ``.bz2``."""

_ROWS = 2938
_TEXT = ("Country", "Status")
_TARGET = "Life expectancy"
_UNFILLED = ("Country", "Year", "Status")
_HEADER = (
    *("Country", "Year", "Status", "Life expectancy", "Adult Mortality", "infant deaths"),
    *("Alcohol", "percentage expenditure", "Hepatitis B", "Measles", "BMI", "under-five deaths"),
    *("Polio", "Total expenditure", "Diphtheria", "HIV/AIDS", "GDP", "Population"),
    *("thinness  1-19 years", "thinness 5-9 years", "Income composition of resources"),
    "Schooling",
)
_LOGARITHMS = ("percentage expenditure", "Population", "GDP")
_WINSORIZED = {
    _TARGET: (0.05, 0.0),
    "Adult Mortality": (0.0, 0.04),
    "Alcohol": (0.0, 0.01),
    "Hepatitis B": (0.20, 0.0),
    "Polio": (0.20, 0.0),
    "Total expenditure": (0.0, 0.02),
    "Diphtheria": (0.11, 0.0),
    "HIV/AIDS": (0.0, 0.21),
    "thinness  1-19 years": (0.0, 0.04),
    "thinness 5-9 years": (0.0, 0.04),
    "Income composition of resources": (0.05, 0.0),
    "Schooling": (0.03, 0.01),
}
"""Fractions cut at the low and the high end of a copy of the column."""

_Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class LifeExpectancy:
    """Rows of one country in one year, newest year first, countries in the order of the file."""

    features: NDArray[np.float64]
    """(2413, 34): each column has mean 0 and variance 1."""
    target: NDArray[np.float64]
    """(2413,): life expectancy, mean 0 and variance 1, without the label noise."""
    country: IntVector
    """(2413,): who a row is about, counted in the order of the file."""


def read_life_expectancy(path: Path) -> LifeExpectancy:
    """Read the file and prepare it as the published code does.

    Missing values become the median of their year; rows with more than 1000 infant deaths, measles
    cases or under-five deaths are dropped; logarithms and winsorized copies of some columns are
    appended; everything is scaled to mean 0 and variance 1 (arXiv:2410.14054, code). The row's
    position in the file stays a feature, and so does a winsorized copy of the *target*: the problem
    is one of optimization and says nothing about prediction.

    Raises
    ------
    ConfigError
        If the file is not the Life Expectancy table of the WHO as Kaggle has it.
    """
    columns, country = _read(path)
    _fill_by_year(columns)
    newest_first = np.argsort(-columns["Year"], kind="stable")
    few = np.all(
        [columns[name] < 1001 for name in ("infant deaths", "Measles", "under-five deaths")], axis=0
    )
    kept = newest_first[few[newest_first]]
    columns = {name: column[kept] for name, column in columns.items() if name != "BMI"}
    for name in _LOGARITHMS:
        columns[f"log {name}"] = _finite_log(columns[name])
    for name, (low, high) in _WINSORIZED.items():
        columns[f"winsorized {name}"] = winsorized(columns[name], low=low, high=high)
    target = columns.pop(_TARGET)
    features = _standardized(np.column_stack(list(columns.values())))
    if not (is_finite(features) and is_finite(target)):
        raise ConfigError(
            f"data: {str(path)!r} has a constant column, an infinite value or a year without any "
            "value in some column once it is prepared; it is not the published table"
        )
    return LifeExpectancy(features, _standardized(target), country[kept])


def winsorized(column: NDArray[np.float64], *, low: float, high: float) -> NDArray[np.float64]:
    """`column` with its floor(low n) smallest and floor(high n) largest values pulled in.

    They become the nearest value that stays: ``scipy.stats.mstats.winsorize``.
    """
    ascending = np.sort(column)
    n = len(column)
    return np.clip(column, ascending[int(low * n)], ascending[n - 1 - int(high * n)])


def _read(path: Path) -> tuple[_Columns, IntVector]:
    """Numeric columns, ``index`` in front, missing values NaN; and the country of each row."""
    opened = bz2.open if path.suffix == ".bz2" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if tuple(name.strip() for name in header) != _HEADER or len(rows) != _ROWS:
            raise ValueError(f"it has {len(rows)} rows of columns {header[:6]}...")
        cells = dict(zip(_HEADER, zip(*rows, strict=True), strict=True))
        columns = {"index": np.arange(len(rows), dtype=np.float64)}
        for name in _HEADER:
            if name not in _TEXT:
                columns[name] = np.array([float(cell or "nan") for cell in cells[name]])
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"data: {str(path)!r} is not the Life Expectancy table ({error}); "
            f"expected {_ROWS} rows of CSV, plain or .bz2, with the columns {list(_HEADER[:6])}..."
        ) from None
    number = {name: i for i, name in enumerate(dict.fromkeys(cells["Country"]))}
    return columns, np.array([number[name] for name in cells["Country"]], dtype=np.int64)


def _fill_by_year(columns: _Columns) -> None:
    for year in np.unique(columns["Year"]):
        rows = columns["Year"] == year
        for name in _HEADER:
            if name in _UNFILLED:
                continue
            values = columns[name][rows]
            missing = np.isnan(values)
            if missing.any() and not missing.all():
                values[missing] = np.median(values[~missing])
                columns[name][rows] = values


def _finite_log(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """log, and 0 instead of log 0."""
    return np.log(column, where=column > 0, out=np.zeros_like(column))


def _standardized(array: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((array - array.mean(axis=0)) / array.std(axis=0))
