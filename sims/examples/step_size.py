"""Who needs a tuned step.

``python -m sims.examples.step_size``. Plain and normalized steps over five decades of gamma, on a
function that is not L-smooth: diverged runs are counted, not dropped.
"""

from __future__ import annotations

import pandas as pd

from sims import sweep
from sims.statistics import summarize


def main(
    *, seeds: int = 5, rounds: int = 200, out: str = "runs/step-size", workers: int | None = None
) -> pd.DataFrame:
    """Print and return the final gradient norm by method and step."""
    results = sweep(
        {
            "seeds": seeds,
            "base": {"problem": "polynomial", "k": 1, "num-clients": 4, "num-rounds": rounds},
            "axes": {
                "method": ["ef21", "norm-ef21"],
                "step-size": [0.001, 0.01, 0.1, 1.0, 10.0],
            },
        },
        out=out,
        workers=workers,
    )
    table = summarize(results, ["method", "step-size"], "final-grad-norm")
    print("Final gradient norm, mean and 95 % t interval", table.to_string(), sep="\n")
    return table


if __name__ == "__main__":
    main()
