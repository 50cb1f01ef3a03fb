"""Who carries out the runs of a sweep: this process, or Ray tasks of one core each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from fedef.errors import ConfigError
from sims.sweeps.plan import Value

Work = Callable[[Mapping[str, Value], Path], None]
Job = tuple[Mapping[str, Value], Path]
"""A configuration and the folder that its run is to leave."""
Pool = Callable[[Iterable[Job]], Iterator[tuple[Path, str | None]]]
"""Carries out jobs; yields each folder as its run ends, with what lost it, else None."""

TRIES = 3
"""Of a run whose process is killed: the system may have been out of memory for a moment."""
_OBJECT_STORE_BYTES = 80 * 2**20


@contextmanager
def open_pool(workers: int, work: Work) -> Iterator[Pool]:
    """A pool of so many Ray workers; 0: this process, one run after another.

    Ray is started when there is a first job, on this machine, unless ``RAY_ADDRESS`` names a
    cluster or the caller has initialized it. Its workers stay warm from run to run.
    """
    if workers == 0:
        yield _here(work)
        return
    with ExitStack() as stack:
        yield _on_ray(work, workers, stack)


def _here(work: Work) -> Pool:
    def run_all(jobs: Iterable[Job]) -> Iterator[tuple[Path, str | None]]:
        for flat, folder in jobs:
            work(flat, folder)
            yield folder, None

    return run_all


@contextmanager
def _ray(workers: int) -> Iterator[None]:
    import ray

    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()
        return
    from sims.ray_cluster import own_ray

    with own_ray(workers, object_store_memory=_OBJECT_STORE_BYTES):
        yield


def _on_ray(work: Work, workers: int, stack: ExitStack) -> Pool:
    def task(flat: Mapping[str, Value], folder: Path, cwd: str) -> None:
        enter(cwd)
        work(flat, folder)

    def run_all(jobs: Iterable[Job]) -> Iterator[tuple[Path, str | None]]:
        waiting, cwd = iter(jobs), str(Path.cwd())
        first = list(islice(waiting, workers + 1))
        if not first:
            return
        import ray

        if not ray.is_initialized():
            stack.enter_context(_ray(workers))
        remote = ray.remote(num_cpus=1, max_retries=0)(task)
        running: dict[Any, tuple[Job, int]] = {}

        def start(job: Job, tries: int) -> None:
            running[remote.remote(*job, cwd)] = (job, tries)

        try:
            # One more than there are cores: a worker that ends finds its next run at hand.
            for job in first:
                start(job, 1)
            while running:
                (done, *_), _ = ray.wait(list(running))
                job, tries = running.pop(done)
                lost = _loss(done)
                if lost is not None and tries < TRIES:
                    start(job, tries + 1)
                    continue
                for following in islice(waiting, 1):
                    start(following, 1)
                yield job[1], lost
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    return run_all


def enter(folder: str) -> None:
    """Change to the folder that the sweep was called in.

    Raises
    ------
    ConfigError
        If this machine does not have it.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(
            f"out: a worker cannot enter {folder!r}, where the sweep was called: {error.strerror}; "
            "on a cluster (RAY_ADDRESS) call it in a folder that all machines share"
        ) from None


def _loss(reference: Any) -> str | None:
    """Why a task lost its process, in a line; None: it is done. What the work raised, raises."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        line = next((part for part in str(error).splitlines() if part.strip()), "")
        return f"{type(error).__name__}: {line.strip()}"
    return None
