"""The door for scripts and notebooks: ``from sims import run``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.numpy import load_file

from fedef.config import Config
from fedef.recorder import Line
from fedef.run_folder import RunFolder
from fedef.vectors import Vector
from sims.engines import start
from sims.run_loop import OnRound, ignore


@dataclass(frozen=True)
class RunResult:
    """What a run left."""

    config: Config
    rounds: pd.DataFrame
    """One row a round, indexed by ``round`` from 1, in the columns that `fedef.recorder` writes:
    ``loss``, ``grad_norm`` and ``test_accuracy`` of the model after the round (NaN where not
    evaluated, see the key eval-every), ``train_loss``, ``estimate_norm``, ``step_size``,
    ``participants``, ``missing`` (list of clients), ``refused``, ``refusals`` (by reason),
    ``gradient_evaluations``, ``independent_norm``, ``zeta2``, ``seconds``, and the bytes of the
    round: ``uplink_bytes``, ``downlink_bytes``, ``envelope_bytes``, ``bound_bytes``."""
    summary: Line
    """The content of summary.json; ``summary["status"]`` is completed, diverged or interrupted."""
    model: dict[str, Vector]
    """The last model by its parts' names; the last finite one where the run diverged."""
    folder: Path | None
    """Where the run's files are; None: they were temporary."""


def run(
    config: Config | Mapping[str, Any] | None = None,
    *,
    engine: str = "inline",
    out: Path | str | None = None,
    workers: int | None = None,
    ray_address: str = "",
    client_resources: str = "",
    lost_worker: str = "replace",
    checkpoint_every: int = 50,
    on_round: OnRound = ignore,
    **keys: Any,
) -> RunResult:
    """Run one configuration, as ``fedef run`` does.

    Parameters
    ----------
    config
        A `Config`, or keys and values; None: the defaults.
    engine
        ``inline``, ``ray`` or ``flower``. All give the same bits.
    out
        The run's folder, which must not hold a run yet; None: a temporary one, removed at once.
    workers, ray_address, client_resources, lost_worker, checkpoint_every
        As the options of ``fedef run``.
    on_round
        Called with each round's line, a mapping with the keys of rounds.jsonl.
    **keys
        Keys that go before those of `config`, with underscores: ``num_rounds=20``.

    Returns
    -------
    RunResult
        Also of a run that diverged or was interrupted: see its ``summary["status"]``.

    Raises
    ------
    FedefError
        If the run cannot start or go on; nothing is printed and nothing exits.

    Examples
    --------
    >>> from sims import run
    >>> result = run(problem="polynomial", num_clients=1, k=1, num_rounds=5)
    >>> result.summary["status"], len(result.rounds)
    ('completed', 5)
    """
    flat = config.to_flat() if isinstance(config, Config) else dict(config or {})
    flat |= {key.replace("_", "-"): value for key, value in keys.items()}
    chosen = Config.from_flat({key.replace("_", "-"): value for key, value in flat.items()})

    def result_in(folder: Path, kept: Path | None) -> RunResult:
        summary = start(
            chosen,
            folder,
            engine=engine,
            on_round=on_round,
            checkpoint_every=checkpoint_every,
            workers=workers,
            ray_address=ray_address,
            client_resources=client_resources,
            lost_worker=lost_worker,
        )
        return _read(chosen, summary, RunFolder(folder), kept)

    if out is not None:
        return result_in(Path(out), Path(out))
    with tempfile.TemporaryDirectory(prefix="fedef-run-") as folder:
        return result_in(Path(folder) / "run", None)


def _read(config: Config, summary: Line, folder: RunFolder, kept: Path | None) -> RunResult:
    rounds = pd.DataFrame(list(folder.rounds()))
    rounds.columns = [str(name).replace("-", "_") for name in rounds.columns]
    if len(rounds):
        rounds = rounds.set_index("round")
    return RunResult(config, rounds, summary, load_file(folder.model_path), kept)
