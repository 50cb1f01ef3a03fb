"""A whole run on the inline engine, with its folder: start, resume, interrupt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.recorder import Line
from sims.checkpoint import load_checkpoint
from sims.engine import InlineEngine
from sims.run_loop import OnRound, ignore, resume_run, start_run


def run_inline(
    config: Config,
    out: Path,
    *,
    on_round: OnRound = ignore,
    checkpoint_every: int = 50,
    keep_state: bool = True,
) -> Line:
    """Run a configuration in this process and return its summary; see `start_run`."""
    return start_run(
        config,
        out,
        open_engine=open_inline,
        name="inline",
        on_round=on_round,
        checkpoint_every=checkpoint_every,
        keep_state=keep_state,
    )


def resume_inline(
    out: Path,
    *,
    num_rounds: int | None = None,
    on_round: OnRound = ignore,
    checkpoint_every: int = 50,
) -> Line:
    """Go on with a run from its last checkpoint, in this process; see `resume_run`."""
    return resume_run(
        out,
        open_engine=open_inline,
        name="inline",
        num_rounds=num_rounds,
        on_round=on_round,
        checkpoint_every=checkpoint_every,
    )


@contextmanager
def open_inline(experiment: Experiment, checkpoint: Path | None) -> Iterator[InlineEngine]:
    """The inline engine, at the start or at a checkpoint."""
    yield load_checkpoint(checkpoint, experiment) if checkpoint else InlineEngine(experiment)
