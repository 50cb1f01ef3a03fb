"""A TCP proxy on the loopback that counts what passes, TLS and all, and may spoil it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_PIECE = 1 << 16

OnPiece = Callable[[bytes], bytes | None]
"""What is passed on for a piece of a stream that was read; None: the connection is cut."""


def _unchanged(piece: bytes) -> bytes:
    return piece


class CountingProxy:
    """Counts bytes to and from one port.

    Parameters
    ----------
    port
        Of the loopback, to which it leads.
    on_piece
        Called for each piece, in the threads of the connections; may take its time.
    """

    def __init__(self, port: int, *, on_piece: OnPiece = _unchanged) -> None:
        self._target, self._on_piece = port, on_piece
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent = 0
        """Bytes from those who connect."""
        self.received = 0
        """Bytes to them."""
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more; what is connected goes on until it ends."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._join(near)

    def _join(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:  # nobody is there now; the next who connects may find somebody
            near.close()
            return
        for ends in ((near, far, True), (far, near, False)):
            threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                with self._lock:
                    self.sent += len(piece) if upwards else 0
                    self.received += 0 if upwards else len(piece)
                passed = self._on_piece(piece)
                if passed is None:
                    source.shutdown(socket.SHUT_RDWR)
                    break
                sink.sendall(passed)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)  # the other direction may still be in use


@contextmanager
def counting(port: int, *, on_piece: OnPiece = _unchanged) -> Iterator[CountingProxy]:
    """Count what passes to `port` inside the block; parameters as for `CountingProxy`."""
    proxy = CountingProxy(port, on_piece=on_piece)
    try:
        yield proxy
    finally:
        proxy.close()
