"""Orders to the workers, and those of past rounds, which a new worker is given again."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray

from sims.ray_worker import Ask

HELD_BYTES = 2**26
"""Of the models of past rounds that are held here, before the object store has them."""


@dataclass(frozen=True)
class Order:
    """The tasks of one round: what they share, once, and what each worker gets."""

    model: Any
    """Bytes, a view of them, or a reference into the object store."""
    buffers: Any
    """Likewise."""
    asks: Mapping[int, Sequence[Ask]]
    """By worker."""

    def arguments(self, worker: int) -> tuple[Sequence[Ask], Any, Any]:
        """Arguments of `Worker.work` and `Worker.repeat`."""
        return self.asks[worker], _bytes_of(self.model), _bytes_of(self.buffers)

    def give(self, worker: int, method: Any) -> Any:
        """Call a worker's method for this round; return the reference to its result."""
        return method.remote(*self.arguments(worker))

    @property
    def is_stored(self) -> bool:
        """Whether what is shared is in the object store."""
        return isinstance(self.model, ray.ObjectRef)

    @property
    def shared_bytes(self) -> int:
        """Size of what is shared, where it is here."""
        return 0 if self.is_stored else len(self.model) + len(self.buffers)

    def stored(self) -> Order:
        """The same with what is shared in the object store."""
        return self if self.is_stored else self._with(_put(self.model), _put(self.buffers))

    def copied(self, memory: memoryview) -> Order:
        """The same with what is shared in the first `shared_bytes` of some memory."""
        model, end = len(self.model), self.shared_bytes
        memory[:model], memory[model:end] = self.model, self.buffers
        return self._with(memory[:model], memory[model:end])

    def _with(self, model: Any, buffers: Any) -> Order:
        return replace(self, model=model, buffers=buffers)


class PastOrders:
    """The orders since the last checkpoint.

    Their models are copied into pages that are kept from one checkpoint to the next. On the heap
    they make it grow by a model a round, so that the server's step works on pages that are new to
    the process: 20 microseconds for each 4 KiB of them on a virtual machine, milliseconds a round.
    """

    def __init__(self) -> None:
        self._orders: list[Order] = []
        self._next: Order | None = None
        self._memory: memoryview | None = None
        self._used = 0

    def __len__(self) -> int:
        return len(self._orders)

    def __iter__(self) -> Iterator[Order]:
        return iter(self._orders)

    def hold(self, order: Order) -> None:
        """Copy the order of the open round; it is none of the past ones before `close_round`."""
        end = self._used + order.shared_bytes
        if order.is_stored or end > HELD_BYTES:
            self._next = order.stored()
            return
        if self._memory is None:
            self._memory = _pages()
        self._next = order.copied(self._memory[self._used : end])

    def close_round(self) -> None:
        """The order that is held is a past one from here on."""
        if self._next is not None:
            self._used += self._next.shared_bytes
            self._orders.append(self._next)
            self._next = None

    def clear(self) -> None:
        """Forget them, and what is held for an open round."""
        self._orders.clear()
        self._next, self._used = None, 0


def _pages() -> memoryview:
    """Memory that costs nothing before it is used, in large pages where the system has them."""
    pages = mmap.mmap(-1, HELD_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel that has none
            pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)


def _bytes_of(shared: Any) -> Any:
    return bytes(shared) if isinstance(shared, memoryview) else shared


def _put(shared: Any) -> Any:
    return ray.put(_bytes_of(shared)) if shared else shared
