"""The gradients of a round's clients, one by one or together; every engine works through here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedef.client_session import ClientSession, Computed, Nothing, Work
from fedef.codec import decode_dense
from fedef.experiment import Experiment
from fedef.messages import Task
from fedef.problems.base import BatchedProblem

ENTRIES_AT_ONCE = 2**24
"""Of the gradients that wait for their clients: 64 MiB in float32."""

Asked = Sequence[tuple[ClientSession, Task]]


def work_of(experiment: Experiment, asked: Asked) -> Iterator[Work | Nothing]:
    """Work of each client of one process, in the order given.

    With the key `batched`, and where the problem can, the gradients at the round's model are
    computed together, a few megabytes of them at a time; further local steps and second gradients
    stay one by one. The bits of a sum then depend on who is computed with whom.

    Parameters
    ----------
    experiment
        Of all the sessions.
    asked
        The sessions with their tasks, all of one round and one model.
    """
    problem, batched = experiment.problem, experiment.config.batched
    if batched and isinstance(problem, BatchedProblem) and not problem.initial_buffers().size:
        yield from _together(problem, problem.dimension, asked)
    else:
        for session, task in asked:
            yield session.work(task)


def _together(problem: BatchedProblem, dimension: int, asked: Asked) -> Iterator[Work | Nothing]:
    size = max(1, ENTRIES_AT_ONCE // dimension)
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        x = decode_dense(part[0][1].model, dimension)
        rows = [session.minibatch(task.round) for session, task in part]
        results = problem.local_many([task.client for _, task in part], x, rows=rows)
        for (session, task), drawn, result in zip(part, rows, results, strict=True):
            yield session.work(task, Computed(x, drawn, result))
