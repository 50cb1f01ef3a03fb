"""How small k may be.

``python -m sims.examples.k_against_bytes``. A smaller k sends less in a round and needs more
rounds: what counts are the bytes to a target.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sims import sweep
from sims.statistics import cost_to_target


def main(
    *,
    seeds: int = 5,
    rounds: int = 400,
    target: float = 0.9,
    out: str = "runs/k-against-bytes",
    workers: int | None = None,
) -> pd.DataFrame:
    """Print and return the uplink bytes to a test accuracy by k/d."""
    results = sweep(
        {
            "seeds": seeds,
            "base": {
                "problem": "digits-mlp",
                "method": "norm-ef21",
                "num-rounds": rounds,
                "stop-accuracy": target,
            },
            "axes": {
                "compressor": ["top-k", "rand-k"],
                "k-fraction": [0.001, 0.01, 0.1],
            },
        },
        out=out,
        workers=workers,
    )
    curves = pd.read_parquet(Path(out) / "curves.parquet")
    costs = cost_to_target(results, curves, ["compressor", "k-fraction"], target=target)
    print(
        f"Uplink bytes of all clients to a test accuracy of {target}", costs.to_string(), sep="\n"
    )
    return costs


if __name__ == "__main__":
    main()
