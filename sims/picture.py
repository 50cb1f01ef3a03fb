"""The README's figure: four methods on the digits, loss and accuracy against measured uplink.

Real data and real encoded bytes; the network is simulated, in this process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from fedef.config import Config
from fedef.recorder import Line
from sims.inline_run import run_inline

SEEDS = range(5)
CONTENDERS = {
    "||EF21||, top-k 1 %": {"method": "norm-ef21"},
    "||EF21-SGDM||, top-k 1 %": {"method": "norm-ef21-sgdm"},
    "||EF21||, rand-k 1 %": {"method": "norm-ef21", "compressor": "rand-k"},
    "normalized gradient descent, dense": {"method": "norm-ef21", "compressor": "identity"},
}
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#444444")  # Okabe and Ito, readable for all


def main() -> None:
    """Run everything and write the figure and its numbers beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs/digits.png"))
    arguments = parser.parse_args()
    jobs = [(name, seed, arguments.rounds) for name in CONTENDERS for seed in SEEDS]
    with ProcessPoolExecutor() as pool:
        curves = dict(zip(jobs, pool.map(_curve, jobs), strict=True))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table = _draw(curves, arguments.rounds, arguments.out)
    arguments.out.with_suffix(".json").write_text(json.dumps(table, indent=2) + "\n")


def _curve(job: tuple[str, int, int]) -> NDArray[np.float64]:
    """(rounds, 3): cumulative uplink bytes, loss, test accuracy."""
    name, seed, rounds = job
    config = Config.from_flat({**CONTENDERS[name], "seed": seed, "num-rounds": rounds})
    with tempfile.TemporaryDirectory() as folder:
        lines: list[Line] = []
        run_inline(config, Path(folder) / "run", on_round=lines.append)
    sent = np.cumsum([line["uplink-bytes"] for line in lines])
    rest = [[line["loss"], line["test-accuracy"]] for line in lines]
    return np.column_stack((sent, np.array(rest, dtype=np.float64)))


def _draw(
    curves: dict[tuple[str, int, int], NDArray[np.float64]], rounds: int, out: Path
) -> dict[str, dict[str, float]]:
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    table = {}
    for name, color in zip(CONTENDERS, _COLORS, strict=True):
        runs = np.stack([curves[name, seed, rounds] for seed in SEEDS])
        megabytes = runs[:, :, 0].mean(axis=0) / 1e6
        for axis, column in zip(axes, (1, 2), strict=True):
            values = runs[:, :, column]
            axis.plot(megabytes, values.mean(axis=0), color=color, label=name, linewidth=1.6)
            axis.fill_between(
                megabytes, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, lw=0
            )
        table[name] = {
            "mean test accuracy": round(float(runs[:, -1, 2].mean()), 4),
            "lowest": round(float(runs[:, -1, 2].min()), 4),
            "highest": round(float(runs[:, -1, 2].max()), 4),
            "uplink MB": round(float(runs[:, -1, 0].mean()) / 1e6, 3),
        }
    axes[0].set(ylabel="training loss", yscale="log")
    axes[1].set(ylabel="test accuracy", ylim=(0, 1))
    for axis in axes:
        axis.set(xlabel="uplink of all 10 clients, MB (measured)", xscale="log")
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    figure.suptitle(
        f"digits, 10 clients, Dirichlet 0.1, {rounds} rounds; mean and range of {len(SEEDS)} seeds",
        fontsize=10,
    )
    figure.savefig(out, dpi=150)
    plt.close(figure)
    return table


if __name__ == "__main__":
    main()
