"""One thread for linear algebra: a sum splits by the number of threads, and so do its bits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from threadpoolctl import threadpool_limits

_blocks: list[ExitStack] = []


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread inside the block.

    Engines run in it; wrappers of torch also limit torch's own threads for each step. For small
    models one thread is also the fastest. Libraries that are loaded inside the block are not
    limited before `limit_what_was_loaded`.
    """
    with ExitStack() as limits:
        limits.enter_context(threadpool_limits(limits=1))
        _blocks.append(limits)
        try:
            yield
        finally:
            _blocks.remove(limits)


def limit_what_was_loaded() -> None:
    """Inside a block of `single_threaded`, limit libraries that were loaded since it began, too."""
    if _blocks:
        _blocks[-1].enter_context(threadpool_limits(limits=1))
