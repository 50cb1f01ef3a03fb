"""A client's state on the node's own disk: one file for each run and client.

::

    STATE_DIR/RUN/client-3.fdf      RUN: the run's token, 32 hexadecimal digits

One write between a task and its reply holds both the commit of the last update and the new pending
one. A crash before it leaves the state of the last reply with its pending update, and the server's
next task, which acknowledges the same round again, repeats the commit. A crash after it is a lost
reply, which the next task rolls back. Nobody but the node's own user reads the files: g_i is a
gradient of private data.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np

from fedef.durable import discard_leftovers, make_folder, read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.state import ClientState

FORMAT = 1
KEPT_RUNS = 4
"""Runs whose state a node keeps; older ones are removed when a new run begins there."""
_RUN = re.compile(r"[0-9a-f]{32}")


class ClientStore:
    """Where one client of one run keeps its state.

    Parameters
    ----------
    folder
        The node's state folder; made if it is missing.
    token
        The run's token, as the server's tasks carry it.
    client
        0 to n - 1: who the node is, after a reconnection too.

    Raises
    ------
    ConfigError
        If the token is not one: it becomes the name of a folder.
    """

    def __init__(self, folder: Path, *, token: str, client: int) -> None:
        if not _RUN.fullmatch(token):
            raise ConfigError(
                f"state-dir: the task names no run (token {token[:40]!r}); "
                "use the ServerApp strategies.app of the same version"
            )
        self._folder = folder
        self._owner = {"format": FORMAT, "run": token, "client": client}
        self.path = folder / token / f"client-{client}.fdf"

    def load(self) -> ClientState | None:
        """Return the state that was saved last; None at a client's first task in the run.

        Raises
        ------
        ConfigError
            If the file is damaged, or another run's, client's or version's.
        """
        if not self.path.exists():
            return None
        way_out = (
            f"restore it from a backup, or remove it: client {self._owner['client']} then tells "
            "the server that it lost its state, and the run's on-lost-state decides"
        )
        try:
            arrays = read_arrays(self.path)
            owner = json.loads(arrays.pop("owner").tobytes())
            if owner != self._owner:
                raise ConfigError(f"it holds {owner}, expected {self._owner}")
            return ClientState.from_arrays(arrays)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"state-dir: {str(self.path)!r} cannot be used: {error}; {way_out}"
            ) from None

    def save(self, state: ClientState) -> None:
        """Have the state on the disk, whole, before this returns; the old one stays until then.

        Raises
        ------
        ConfigError
            If the disk is full or the folder cannot be written.
        """
        owner = np.frombuffer(json.dumps(self._owner, sort_keys=True).encode(), dtype=np.uint8)
        try:
            if not self.path.parent.exists():
                make_folder(self.path.parent, mode=0o700)
                self._remove_old_runs()
            discard_leftovers(self.path)
            write_arrays(self.path, {**state.to_arrays(), "owner": owner}, mode=0o600)
        except OSError as error:
            raise ConfigError(
                f"state-dir: client {self._owner['client']} cannot write {str(self.path)!r}: "
                f"{error.strerror}; free space, or give the node another state-dir"
            ) from None

    def _remove_old_runs(self) -> None:
        """Keep the runs that were written last; nothing else in the folder is touched."""
        runs = [p for p in self._folder.iterdir() if p.is_dir() and _RUN.fullmatch(p.name)]
        runs.sort(key=lambda run: (run != self.path.parent, -run.stat().st_mtime_ns))
        for run in runs[KEPT_RUNS:]:
            shutil.rmtree(run, ignore_errors=True)
