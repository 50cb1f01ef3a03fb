"""Lines from the driver to the workers of its own machine: what a round of a small model goes by.

An actor call passes several threads and sockets on its way, milliseconds in a round of tens. A line
is a Unix socket on which a thread of the worker waits. Ray keeps starting, placing and watching the
workers, large models and all other machines: whoever cannot reach the socket has no line. Messages
are pickles, as Ray's own are; only processes of this user can write to the socket.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from threading import Thread
from typing import Any

from threadpoolctl import threadpool_limits

_GONE = (EOFError, OSError)
_log = logging.getLogger("fedef")


class Lines:
    """The driver's end: a socket in a folder that only this user can enter."""

    def __init__(self, workers: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedef-")
        self.address = str(Path(self._folder.name) / "lines")
        self._lines: dict[int, Connection] = {}
        self._listener: Listener | None = None
        try:
            # Room for those that die before they are accepted, too.
            self._listener = Listener(self.address, family="AF_UNIX", backlog=4 * workers)
        except OSError as error:  # a path that is too long, say
            _log.debug("no lines to the workers: %s", error)

    def accept(self, reached: int) -> None:
        """Take the calls of workers that have said that their `dial` reached the socket."""
        for _ in range(reached):
            assert self._listener is not None  # noqa: S101 - else nobody has reached it
            line = self._listener.accept()
            with suppress(*_GONE):
                self._lines[line.recv()] = line

    def __contains__(self, worker: object) -> bool:
        return worker in self._lines

    def send(self, worker: int, order: Any) -> None:
        """Give a worker an order; if it is gone, `answers` finds out."""
        with suppress(OSError):
            self._lines[worker].send(order)

    def answers(self, workers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """(worker, answer) of each of the workers, as they come; None: it has none on its line."""
        waiting = {self._lines[worker]: worker for worker in workers}
        try:
            while waiting:
                ready = wait(list(waiting))
                for line in [line for line in waiting if line in ready]:
                    worker, answer = waiting.pop(line), None
                    try:
                        answer = line.recv()
                    except _GONE:
                        self.hang_up(worker)
                    yield worker, answer
        finally:  # an answer that nobody has heard must not be taken for the next one
            for worker in waiting.values():
                self.hang_up(worker)

    def hang_up(self, worker: int) -> None:
        """Forget a worker's line, if it has one."""
        if line := self._lines.pop(worker, None):
            line.close()

    def close(self) -> None:
        """Hang up on all."""
        for worker in list(self._lines):
            self.hang_up(worker)
        if self._listener is not None:
            self._listener.close()
        self._folder.cleanup()


def dial(address: str, worker: int, work: Callable[[Any], Any]) -> bool:
    """The worker's end: call the driver, and answer its orders in a thread; whether it was reached.

    An order that fails is answered by None: the driver then asks by a call, which tells the error.
    """
    try:
        line = Client(address, family="AF_UNIX")
        line.send(worker)
    except OSError:
        return False
    Thread(target=_serve, args=(line, work), daemon=True, name="fedef-line").start()
    return True


def _serve(line: Connection, work: Callable[[Any], Any]) -> None:
    threadpool_limits(limits=1)  # OpenMP counts for each thread apart
    with suppress(*_GONE), line:
        while True:
            order = line.recv()
            try:
                answer = work(order)
            except Exception:
                _log.debug("an order by line failed", exc_info=True)
                answer = None
            line.send(answer)
