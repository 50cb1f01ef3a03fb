"""Lines from the driver to the workers of its own machine: what a round of a small model goes by.

An actor call passes several threads and sockets on its way, milliseconds in a round of tens. A line
is a Unix socket on which a thread of the worker waits, and memory that both map: who writes more
than a socket holds sleeps in the middle, and may then wait for a core that a worker has. Ray keeps
starting, placing and watching the workers, large models and all other machines: whoever cannot
reach the socket has no line. Messages are pickles, as Ray's own are; only processes of this user
can write to the socket.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle  # nosec B403 - between processes of one user, as Ray does
import select
import socket
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from threadpoolctl import threadpool_limits

SHARED_BYTES = 2**22
"""Messages up to it are written into memory that both ends map, larger ones into the socket."""
_GONE = (EOFError, OSError)
_NUMBER = struct.Struct("=Q")
_log = logging.getLogger("fedef")


class Line:
    """One end of a line. The ends take turns: who has sent a message hears one before the next."""

    def __init__(self, connected: socket.socket, out: mmap.mmap, into: mmap.mmap) -> None:
        """`out`, `into`: memory for what goes out, and for what comes in."""
        self._socket, self._out, self._in = connected, out, into

    @classmethod
    def to(cls, address: str, worker: int) -> Line:
        """The worker's end.

        Raises
        ------
        OSError
            If nobody is there, or there is no memory to share.
        """
        with ExitStack() as undo:
            connected = undo.enter_context(socket.socket(socket.AF_UNIX))
            connected.connect(address)
            numbers: list[int] = []
            with _closing(numbers):
                for name in ("answers", "orders"):
                    numbers.append(os.memfd_create(f"fedef-{name}"))
                    os.ftruncate(numbers[-1], SHARED_BYTES)
                out, into = _mapped(numbers)
                socket.send_fds(connected, [_NUMBER.pack(worker)], numbers)
            undo.pop_all()
        return cls(connected, out, into)

    @classmethod
    def of(cls, connected: socket.socket) -> tuple[int, Line]:
        """The worker that is calling, and the driver's end.

        Raises
        ------
        EOFError, OSError
            If the worker is gone, or there is no memory to share.
        """
        with ExitStack() as undo:
            undo.enter_context(connected)
            data, numbers, *_ = socket.recv_fds(connected, _NUMBER.size, 2)
            with _closing(numbers):
                if len(numbers) != 2:
                    raise EOFError
                into, out = _mapped(numbers)
            undo.pop_all()
        return _NUMBER.unpack(data)[0], cls(connected, out, into)

    def fileno(self) -> int:
        """To wait for a message."""
        return self._socket.fileno()

    def send(self, message: Any) -> None:
        """Write a message.

        Raises
        ------
        OSError
            If the other end is gone.
        """
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        shared = len(data) <= SHARED_BYTES
        if shared:
            self._out[: len(data)] = data
        self._socket.sendall(_NUMBER.pack(len(data)))
        if not shared:
            self._socket.sendall(data)

    def receive(self) -> Any:
        """Wait for a message.

        Raises
        ------
        EOFError, OSError
            If the other end is gone.
        """
        (size,) = _NUMBER.unpack(self._read(_NUMBER.size))
        if size > SHARED_BYTES:
            return pickle.loads(self._read(size))  # noqa: S301 - see above # nosec B301
        with memoryview(self._in) as shared, shared[:size] as data:
            return pickle.loads(data)  # noqa: S301 - see above # nosec B301

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
        self._out.close()
        self._in.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            read = self._socket.recv_into(rest, flags=socket.MSG_WAITALL)
            if not read:
                raise EOFError
            rest = rest[read:]
        return data


def _mapped(numbers: Sequence[int]) -> tuple[mmap.mmap, mmap.mmap]:
    """Memory of two descriptors, which may be closed after it."""
    answers, orders = (mmap.mmap(number, SHARED_BYTES) for number in numbers)
    return answers, orders


@contextmanager
def _closing(numbers: Sequence[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for number in numbers:
            os.close(number)


class Lines:
    """The driver's end: a socket in a folder that only this user can enter."""

    def __init__(self, workers: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedef-")
        self.address = str(Path(self._folder.name) / "lines")
        self._lines: dict[int, Line] = {}
        self._unheard: set[int] = set()
        """Who has an order that nobody has heard the answer to."""
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(self.address)
            # Room for those that die before they are accepted, too.
            self._listener.listen(4 * workers)
            self._listener.setblocking(False)
        except OSError as error:  # a path that is too long, say
            _log.debug("no lines to the workers: %s", error)

    def accept(self) -> None:
        """Take the calls that wait: of every worker that has said that its `dial` came through."""
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:  # nobody is left
                return
            connected.setblocking(True)
            with suppress(*_GONE):
                worker, line = Line.of(connected)
                self.hang_up(worker)  # on one that died before
                self._lines[worker] = line

    def __contains__(self, worker: object) -> bool:
        return worker in self._lines

    def send(self, worker: int, order: Any) -> None:
        """Give a worker an order; if it is gone, `answers` finds out."""
        if worker in self._unheard:  # what comes first is not the answer to this order
            self.hang_up(worker)
        if line := self._lines.get(worker):
            self._unheard.add(worker)
            with suppress(OSError):
                line.send(order)

    def answers(self, workers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """(worker, answer) of each of the workers, as they come; None: it has none on its line."""
        waiting: dict[int, int] = {}
        poll = select.poll()
        for worker in workers:
            if worker in self._lines:
                number = self._lines[worker].fileno()
                waiting[number] = worker
                poll.register(number, select.POLLIN)
            else:
                yield worker, None
        while waiting:
            for number, _ in poll.poll():
                poll.unregister(number)
                worker, answer = waiting.pop(number), None
                try:
                    answer = self._lines[worker].receive()
                    self._unheard.discard(worker)
                except _GONE:
                    self.hang_up(worker)
                yield worker, answer

    def hang_up(self, worker: int) -> None:
        """Forget a worker's line, if it has one."""
        self._unheard.discard(worker)
        if line := self._lines.pop(worker, None):
            line.close()

    def close(self) -> None:
        """Hang up on all."""
        for worker in list(self._lines):
            self.hang_up(worker)
        self._listener.close()
        self._folder.cleanup()


def dial(address: str, worker: int, work: Callable[[Any], Any]) -> bool:
    """The worker's end: call the driver, and answer its orders in a thread; whether it was reached.

    An order that fails is answered by None: the driver then asks by a call, which tells the error.
    """
    if not hasattr(os, "memfd_create"):  # Linux has it
        return False
    try:
        line = Line.to(address, worker)
    except OSError as error:
        _log.debug("no line to the driver: %s", error)
        return False
    Thread(target=_serve, args=(line, work), daemon=True, name="fedef-line").start()
    return True


def _serve(line: Line, work: Callable[[Any], Any]) -> None:
    threadpool_limits(limits=1)  # OpenMP counts for each thread apart
    _yield_to_the_driver()
    with suppress(*_GONE), closing(line):
        while True:
            order = line.receive()
            try:
                answer = work(order)
            except Exception:
                _log.debug("an order by line failed", exc_info=True)
                answer = None
            line.send(answer)


def _yield_to_the_driver() -> None:
    """Have this thread not take the driver's core in the middle of its orders to the others.

    Linux runs a thread that wakes up in the place of the one that woke it, unless it is of this
    kind; the driver would go on 2 to 4 ms later.
    """
    with suppress(OSError):  # where it is not allowed
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
