"""One thread for linear algebra: a sum splits by the number of threads, and so do its bits."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread inside the block.

    Engines run in it; wrappers of torch also limit torch's own threads for each step. For small
    models one thread is also the fastest.
    """
    with threadpool_limits(limits=1):
        yield
