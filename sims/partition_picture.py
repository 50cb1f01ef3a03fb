"""``fedef partition``: who holds what, as a picture and a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedef.experiment import Experiment
from fedef.heterogeneity import LabelTable, label_table
from sims.page.drawing import LIGHT, Draw

_SHOWN_AS_BUBBLES, _SHOWN_ONE_BY_ONE = 30, 100
"""Clients: of more than the second, their distributions are shown."""


@dataclass(frozen=True)
class Dealt:
    """A partition."""

    name: str
    sizes: NDArray[np.int64]
    """(n,) examples of each client."""
    table: LabelTable | None
    """Classes; None where the problem has none."""
    distance: float | None
    """Label distance, weighted as the objective is."""

    @classmethod
    def of(cls, experiment: Experiment) -> Dealt:
        """The partition of an experiment."""
        config, problem = experiment.config, experiment.problem
        table = label_table(problem)
        how = f"{config.partitioner}"
        if config.partitioner == "dirichlet":
            how += f" {config.dirichlet_alpha:g}"
        elif config.partitioner == "pathological":
            how += f" {config.classes_per_client}"
        return cls(
            f"{config.problem}, {how}, seed {config.seed}",
            np.array(problem.num_examples, dtype=np.int64),
            table,
            None if table is None else table.distance(experiment.weights),
        )

    @property
    def summary(self) -> str:
        """One sentence."""
        n, sizes = len(self.sizes), self.sizes
        text = (
            f"{n} client{'s' * (n > 1)} with {sizes.min()} to {sizes.max()} examples "
            f"(median {np.median(sizes):g})"
        )
        if self.table is None or self.distance is None:
            return f"{text}; the problem has no classes"
        held = (self.table.counts > 0).sum(axis=1)
        return (
            f"{text}, {held.min()} to {held.max()} of {len(self.table.classes)} classes each "
            f"(median {np.median(held):g}); label distance {self.distance:.3f}"
        )

    def rows(self) -> list[list[str]]:
        """A heading, then one row for each client: sizes, classes, distance, counts."""
        if self.table is None:
            return [["client", "examples"], *([str(i), str(m)] for i, m in enumerate(self.sizes))]
        counts, distances = self.table.counts, self.table.distances()
        return [
            ["client", "examples", "classes", "distance", *map(str, self.table.classes)],
            *(
                [
                    str(client),
                    str(size),
                    str(int((counts[client] > 0).sum())),
                    f"{distances[client]:.4f}",
                    *map(str, counts[client]),
                ]
                for client, size in enumerate(self.sizes)
            ),
        ]


def picture(dealt: Dealt, *, width: float = 4.6, height: float = 4.0) -> Draw:
    """Return what draws the partition, `width` by `height` inches.

    Up to 100 clients: how many examples each has, and below one mark for each client and class, its
    area (up to 30 clients) or its height the number of examples. More: how sizes and label
    distances are distributed.
    """
    if len(dealt.sizes) > _SHOWN_ONE_BY_ONE:
        return partial(_distributions, dealt, (width, height))
    return partial(_one_by_one, dealt, (width, height))


def _one_by_one(dealt: Dealt, size: tuple[float, float], ink: str) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    clients = np.arange(len(dealt.sizes))
    if dealt.table is None:
        upper = lower = figure.add_subplot()
    else:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    upper.bar(clients, dealt.sizes, color=LIGHT[5], width=0.72, alpha=0.75)
    upper.set_title(f"{dealt.name}\nexamples of each client", loc="left", fontsize=10.5)
    upper.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    if dealt.table is not None:
        counts = dealt.table.counts
        client, column = np.nonzero(counts)
        share = counts[client, column] / counts.max()
        # Axes take about 0.82 of the width and 0.6 of the height.
        wide, high = 59 * size[0] / len(clients), 43 * size[1] / counts.shape[1]
        if len(clients) > _SHOWN_AS_BUBBLES:
            shown_by = "height"
            top = column - 0.42 + 0.84 * share
            lower.vlines(client, column - 0.42, top, colors=LIGHT[0], linewidth=0.8 * wide)
        else:
            shown_by = "area"
            largest = 0.96 * min(wide, high)
            lower.scatter(client, column, s=largest**2 * share, color=LIGHT[0], alpha=0.85, lw=0)
        lower.set_yticks(range(counts.shape[1]), [str(c) for c in dealt.table.classes])
        lower.set_ylim(-0.7, counts.shape[1] - 0.3)
        lower.set_title(f"class ({shown_by}: examples)", loc="left", fontsize=10.5)
        lower.grid(alpha=0.2, color=ink, linewidth=0.5)
        lower.set_axisbelow(True)
        lower.tick_params(length=0)
    for axes in {upper, lower}:
        axes.patch.set_alpha(0)
    lower.set_xlabel("client")
    lower.set_xlim(-0.7, len(clients) - 0.3)
    lower.xaxis.set_major_locator(MaxNLocator(min(10, len(clients)), integer=True))
    return figure


def _distributions(dealt: Dealt, size: tuple[float, float], ink: str) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    shown = [("examples of a client", dealt.sizes.astype(np.float64))]
    if dealt.table is not None:
        distances = dealt.table.distances()
        shown.append(("label distance of a client", distances[np.isfinite(distances)]))
    for axes, (label, values) in zip(
        np.atleast_1d(figure.subplots(len(shown), 1)), shown, strict=True
    ):
        axes.patch.set_alpha(0)
        # Around equal values too, whose range is nothing or a rounding.
        margin = max(0.5 * float(np.ptp(values)) / 30, 0.01 * float(values.max()), 1e-3)
        bins = np.linspace(values.min() - margin, values.max() + margin, 31)
        axes.hist(values, bins=bins.tolist(), color=LIGHT[0], alpha=0.85)
        axes.set_xlabel(label)
        axes.set_title("clients", loc="left", fontsize=10.5)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(alpha=0.2, color=ink, linewidth=0.5)
    figure.suptitle(dealt.name, x=0.02, ha="left", fontsize=10.5)
    return figure
