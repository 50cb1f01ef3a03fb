"""From a sweep's file to its cells: what is run, before anything is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from typing import Any

import tomli_w

from fedef.config import Config, known_keys
from fedef.errors import ConfigError

Value = bool | int | float | str
Settings = dict[str, Value]
Group = tuple[Value | None, ...]

METRICS = {"final-loss": 1, "final-grad-norm": 1, "test-accuracy": -1}
"""What tuning may look at; -1: the largest is the best."""

DEFAULT_SEEDS = 5
FIRST_TUNE_SEED = 1000
_KEYS = ("name", "seeds", "tune", "tune-seeds", "tune-per", "tune-metric", "base", "axes")


@dataclass(frozen=True)
class Cell:
    """One value of each axis."""

    number: int
    """From 0, in the order of the sweep."""
    columns: dict[str, Value | None]
    """By axis and by varied key, see `sims.sweeps`; without the tuned keys."""
    settings: Settings
    """What the base and the axes set."""


@dataclass(frozen=True)
class Tuning:
    """How values are chosen on runs that are not reported."""

    grid: tuple[Settings, ...]
    """Every combination of the tuned keys' values."""
    ends: tuple[bool, ...]
    """Whether a point of the grid has the least or the largest of some key's numbers."""
    seeds: tuple[int, ...]
    per: tuple[str, ...]
    """Columns whose values make a group; each group chooses for itself."""
    metric: str


@dataclass(frozen=True)
class Plan:
    """A sweep whose every configuration is valid."""

    name: str
    source: dict[str, Any]
    """As it was given."""
    axes: dict[str, tuple[Value, ...]]
    """Values, or combinations' names, by axis."""
    columns: tuple[str, ...]
    """Of `Cell`, then the tuned keys."""
    identity: tuple[str, ...]
    """Those that tell the cells apart: the axes, and keys that the axes' names do not settle."""
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    tuning: Tuning | None

    @property
    def toml(self) -> str:
        """The source as a file."""
        return tomli_w.dumps(self.source)

    @property
    def digest(self) -> str:
        """16 hex digits: of the source."""
        return blake2b(self.toml.encode(), digest_size=8).hexdigest()

    @property
    def num_runs(self) -> int:
        """Of the whole sweep, the tuning's among them."""
        tuning = self.tuning
        of_cell = len(self.seeds) + (len(tuning.grid) * len(tuning.seeds) if tuning else 0)
        return len(self.cells) * of_cell

    def group(self, cell: Cell) -> Group:
        """The cell's group in the tuning: its values of the columns `Tuning.per`."""
        per = self.tuning.per if self.tuning else ()
        return tuple(cell.columns[name] for name in per)


def config_of(cell: Cell, seed: int, tuned: Mapping[str, Value]) -> Config:
    """The configuration of a run."""
    return Config.from_flat({**cell.settings, **tuned, "seed": seed})


def make_plan(source: Mapping[str, Any], *, name: str = "sweep") -> Plan:
    """Read a sweep, see `sims.sweeps` for its keys.

    Raises
    ------
    ConfigError
        If a key or a value is not allowed, an axis is empty, a key is set by two axes or by an
        axis and the tuning, or tuning seeds are reported ones.
    """
    _check_keys(source)
    base = _table(source, "base")
    axes = {axis: _points(axis, given) for axis, given in _table(source, "axes").items()}
    tune = _table(source, "tune")
    _check_owners(base, axes, tune)
    seeds = _seeds(source, "seeds", DEFAULT_SEEDS, first=0)
    settings = [(dict(labels), {**base, **keys}) for labels, keys in _product(axes)]
    varied = [key for key in known_keys() if any(key in p for ps in axes.values() for _, p in ps)]
    grid = _grid(tune)
    cells = tuple(
        Cell(number, _columns(labels, keys, varied, {**grid[0]}), keys)
        for number, (labels, keys) in enumerate(settings)
    )
    for cell in cells:
        for point in grid:
            config_of(cell, seeds[0], point)
    columns = tuple(cells[0].columns)
    tuning = _tuning(source, tune, grid, columns, seeds) if tune else None
    return Plan(
        name=str(source.get("name", name)),
        source=dict(source),
        axes={axis: tuple(dict.fromkeys(label for label, _ in ps)) for axis, ps in axes.items()},
        columns=(*columns, *tune),
        identity=(*axes, *_unsettled(axes, cells)),
        cells=cells,
        seeds=seeds,
        tuning=tuning,
    )


_Points = list[tuple[Value, Settings]]


def _points(axis: str, given: Any) -> _Points:
    """(label, settings) of each value of an axis."""
    if isinstance(given, list) and given:
        if axis not in known_keys():
            raise ConfigError(
                f"axes: {axis!r} with a list of values must be a key, see 'fedef keys'; "
                f"for named combinations write [axes.{axis}.NAME]"
            )
        return [(value, {axis: value}) for value in _distinct("axes", axis, given)]
    if isinstance(given, Mapping) and given and all(isinstance(v, Mapping) for v in given.values()):
        return [
            (label, dict(zip(keys, values, strict=True)))
            for label, keys in given.items()
            for values in product(
                *(
                    _distinct(f"axes.{axis}.{label}", key, value)
                    if isinstance(value, list)
                    else [value]
                    for key, value in keys.items()
                )
            )
        ]
    raise ConfigError(
        f"axes: {axis!r} must be a list of values or a table of named tables of keys, got "
        f"{given!r}; for example dirichlet-alpha = [0.1, 1.0]"
    )


def _product(axes: Mapping[str, _Points]) -> Iterator[tuple[list[tuple[str, Value]], Settings]]:
    for points in product(*axes.values()):
        labels = [(axis, label) for axis, (label, _) in zip(axes, points, strict=True)]
        yield labels, {key: value for _, keys in points for key, value in keys.items()}


def _columns(
    labels: Mapping[str, Value], keys: Settings, varied: Sequence[str], tuned: Settings
) -> dict[str, Value | None]:
    flat = Config.from_flat({**keys, **tuned}).to_flat()
    values = {key: flat[key] if key in keys else None for key in varied}
    return {**labels, **values, **labels}  # the names come first, and settle a key of their name


def _unsettled(axes: Mapping[str, _Points], cells: Sequence[Cell]) -> list[str]:
    """Keys with several values among the cells of the same names."""

    def distinct(*names: str) -> int:
        return len({tuple(cell.columns[name] for name in names) for cell in cells})

    return [
        key
        for key in cells[0].columns
        if key not in axes and distinct(*axes, key) > distinct(*axes)
    ]


def _grid(tune: Mapping[str, Any]) -> list[Settings]:
    for key, values in tune.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"tune: {key} must be a list of values, got {values!r}; "
                f"for example tune = {{{key} = [0.1, 1.0]}}"
            )
    lists = [_distinct("tune", key, values) for key, values in tune.items()]
    return [dict(zip(tune, point, strict=True)) for point in product(*lists)]


def _tuning(
    source: Mapping[str, Any],
    tune: Mapping[str, list[Value]],
    grid: list[Settings],
    columns: Sequence[str],
    reported: Sequence[int],
) -> Tuning:
    seeds = _seeds(source, "tune-seeds", 2, first=FIRST_TUNE_SEED)
    shared = sorted(set(seeds) & set(reported))
    if shared:
        raise ConfigError(
            f"tune-seeds: {shared} are reported seeds too, which would flatter the chosen values; "
            f"take others, for example from {FIRST_TUNE_SEED} on"
        )
    per = source.get("tune-per", list(columns))
    if not isinstance(per, list) or not set(per) <= set(columns):
        raise ConfigError(f"tune-per: must be a list of {list(columns)}, got {per!r}")
    metric = source.get("tune-metric", "final-loss")
    if metric not in METRICS:
        raise ConfigError(f"tune-metric: must be one of {list(METRICS)}, got {metric!r}")
    numbers = {
        key: [value for value in values if isinstance(value, int | float)]
        for key, values in tune.items()
    }
    ends = {
        key: {min(numbers[key]), max(numbers[key])}
        for key, values in tune.items()
        if len(numbers[key]) == len(values) > 1 and not isinstance(values[0], bool)
    }
    at_end = tuple(any(point[key] in ends[key] for key in ends) for point in grid)
    return Tuning(tuple(grid), at_end, seeds, tuple(per), metric)


def _seeds(source: Mapping[str, Any], key: str, default: int, *, first: int) -> tuple[int, ...]:
    given = source.get(key, default)
    seeds = list(range(first, first + given)) if type(given) is int else given
    valid = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not valid or not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(
            f"{key}: must be a number of seeds or a list of different ones, got {given!r}; "
            f"for example {key} = {default}"
        )
    return tuple(seeds)


def _check_keys(source: Mapping[str, Any]) -> None:
    for key in source:
        if key not in _KEYS:
            where = "; put a run's keys under [base]" if key in known_keys() else ""
            raise ConfigError(f"sweep: unknown key {key!r}; allowed are {', '.join(_KEYS)}{where}")


def _check_owners(
    base: Mapping[str, Any], axes: Mapping[str, _Points], tune: Mapping[str, Any]
) -> None:
    owners: dict[str, str] = dict.fromkeys(tune, "tune")
    for axis, points in axes.items():
        for key in dict.fromkeys(key for _, keys in points for key in keys):
            if key in owners:
                raise ConfigError(
                    f"axes: {key} is set by {axis!r} and by {owners[key]!r}; leave it to one"
                )
            owners[key] = f"axis {axis}"
    if "seed" in {*base, *owners}:
        raise ConfigError("seed: is set by seeds = ..., which pairs the cells; take it out")


def _table(source: Mapping[str, Any], name: str) -> dict[str, Any]:
    given = source.get(name, {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name}: must be a table, got {given!r}; write it as [{name}]")
    return dict(given)


def _distinct(where: str, key: str, values: Sequence[Any]) -> list[Value]:
    """Values as the configuration has them; one given twice would count twice."""
    valid = [_valid(key, value) for value in values]
    if len(set(valid)) != len(valid):
        raise ConfigError(f"{where}: {key} has a value twice, got {list(values)}; keep one of them")
    return valid


def _valid(key: str, value: Any) -> Value:
    """The value as the configuration has it: 1 of a float key is 1.0."""
    return Config.from_flat({key: value}).to_flat()[key]
