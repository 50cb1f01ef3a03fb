"""The server's state on its disk: a checkpoint, and on demand a mirror of every client's g_i.

The checkpoint holds what its round changed in the mirror, as entries that overwrite. It is written
first, then the mirror; after a crash the mirror is brought up to the checkpoint, which changes
nothing where it was already there. A round without a checkpoint of its own leaves its entry in the
journal, from which it is done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedef.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedef.durable import discard_leftovers, sync_folder, write_atomically
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.journal import Entry, Journal
from fedef.members import MIRRORED, Policies
from fedef.rounds import RoundReport
from fedef.server_session import Rows, ServerSession
from fedef.state import ServerState
from fedef.updates import Update
from fedef.vectors import Vector

_WAY_OUT = (
    "restore it and its .json together with the checkpoint, or go on with on-lost-state=stop, "
    "evict-by-reset or dense-resync, which need none"
)


class Mirror:
    """(n, d) every client's g_i, in a memory-mapped file; rows never written take no disk.

    Parameters
    ----------
    path
        An npy file; beside it lies a small one that says of which run and round it is.
    shape
        (n, d).
    dtype
        The problem's.
    new
        Whether to make it, all zero, in the place of what may be there; else it must be there.

    Raises
    ------
    ConfigError
        If the file cannot be made, is missing, or has another form.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], dtype: np.dtype[np.floating], *, new: bool
    ) -> None:
        self._path, self._stamp_path = path, path.with_suffix(".json")
        try:
            if new:
                self._stamp_path.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                path.touch(mode=0o600)  # it holds every client's gradients
            self._rows = np.lib.format.open_memmap(
                path,
                mode="w+" if new else "r+",
                dtype=dtype if new else None,
                shape=shape if new else None,
            )
            if new:
                self._rows.flush()
                sync_folder(path.parent)
            discard_leftovers(self._stamp_path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"mirror {str(path)!r}: {error}; {_WAY_OUT}") from None
        if (self._rows.shape, self._rows.dtype) != (shape, dtype):
            raise ConfigError(
                f"mirror {str(path)!r}: holds {self._rows.shape} of {self._rows.dtype}, expected "
                f"{shape} of {dtype}; {_WAY_OUT}"
            )

    def require(self, token: str, round: int) -> None:
        """Check that it is that of a checkpoint, or lacks its last round alone.

        Raises
        ------
        ConfigError
            If it is another run's or round's.
        """
        try:
            stamp = json.loads(self._stamp_path.read_bytes())
            found = (stamp["run"], stamp["round"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"mirror {str(self._stamp_path)!r}: {error}; {_WAY_OUT}") from None
        if found not in ((token, round), (token, round - 1)):
            raise ConfigError(
                f"mirror {str(self._path)!r} is of round {found[1]} of run {str(found[0])[:32]!r}, "
                f"the checkpoint of round {round} of run {token!r}; {_WAY_OUT}"
            )

    def row(self, client: int) -> Vector:
        """(d,) g_i, to be read only."""
        row: Vector = np.asarray(self._rows[client])
        row.flags.writeable = False
        return row

    def overwrite(self, changes: Mapping[int, Update], *, token: str, round: int) -> None:
        """Put a round's entries into the rows, all on the disk; again changes nothing."""
        for client, entries in sorted(changes.items()):
            entries.overwrite(self._rows[client])
        if changes:
            self._rows.flush()
        stamp = json.dumps({"run": token, "round": round})
        write_atomically(self._stamp_path, stamp.encode())


class ServerStore:
    """Where the server of a run keeps its state.

    Parameters
    ----------
    path
        The checkpoint's file; the mirror lies beside it.
    experiment
        What is run.
    policies
        Whether there is a mirror.
    every
        Rounds between checkpoints; a mirror needs one in each.

    Raises
    ------
    ConfigError
        If there is a mirror and `every` is not 1.
    """

    def __init__(
        self, path: Path, experiment: Experiment, policies: Policies, *, every: int = 1
    ) -> None:
        if policies.on_lost_state in MIRRORED and every != 1:
            raise ConfigError(
                f"on-lost-state={policies.on_lost_state}: its mirror needs "
                f"server-checkpoint-every=1, got {every}"
            )
        self._path, self._experiment = path, experiment
        self._every = every
        self._known = experiment.weights
        """Weights at the last checkpoint."""
        self._journal = Journal(path.with_name("journal"))
        self._mirrors = policies.on_lost_state in MIRRORED
        self.mirror: Mirror | None = None
        """There from the first `save` or from `load` on."""

    @property
    def journals(self) -> bool:
        """Whether rounds go without a checkpoint, so that the session must be `journaled`."""
        return self._every > 1

    @property
    def rows(self) -> Rows | None:
        """A client's g_i by the client, where there is a mirror."""
        return None if self.mirror is None else self.mirror.row

    @property
    def mirror_bytes(self) -> int:
        """Disk that the mirror takes at most."""
        problem = self._experiment.problem
        return self._experiment.num_clients * problem.dimension * problem.dtype.itemsize

    def keep(
        self,
        checkpoint: Checkpoint,
        session: ServerSession,
        report: RoundReport,
        *,
        last: bool = False,
    ) -> None:
        """Have the round of the report on the disk: in a checkpoint or in the journal.

        `last`: the run ends with it, in a checkpoint.
        """
        if last or session.round % self._every == 0:
            self.save(checkpoint, session)
        else:
            weights = {
                client: weight
                for client, (weight, known) in enumerate(
                    zip(session.weights, self._known, strict=True)
                )
                if weight != known
            }
            self._journal.append(
                Entry(
                    checkpoint.token,
                    report.round,
                    session.members.policies,
                    weights,
                    report.accepted,
                    session.heard,
                )
            )

    def save(self, checkpoint: Checkpoint, session: ServerSession | None = None) -> Checkpoint:
        """Have the session's state, or the start, on the disk; return the new checkpoint.

        Raises
        ------
        ConfigError
            If the mirror cannot be made.
        """
        if self._mirrors and self.mirror is None:
            self.mirror = self._open_mirror(new=True)
        if session is not None:
            checkpoint = replace(
                checkpoint,
                server=session.state,
                weights=session.weights,
                mirrored=dict(session.mirrored),
            )
        checkpoint = replace(checkpoint, has_mirror=self.mirror is not None)
        write_checkpoint(self._path, checkpoint, experiment=self._experiment)
        self._journal.forget(checkpoint.server.round)
        self._known = checkpoint.weights or self._known
        self._bring_up(checkpoint)
        return checkpoint

    def load(self) -> Checkpoint:
        """Return the state after the last round, and bring the mirror up to it.

        Raises
        ------
        ConfigError
            If a file is missing, corrupt or another run's or round's, or the checkpoint was
            written without the mirror that is asked for.
        """
        checkpoint = read_checkpoint(self._path, experiment=self._experiment)
        self._known = checkpoint.weights or self._known
        journal = self._journal.after(checkpoint.server.round, checkpoint.token)
        if self._mirrors:
            known = bool(checkpoint.server.records)  # else every g_i is zero
            if journal or (known and not checkpoint.has_mirror):
                raise ConfigError(
                    "on-lost-state: the run kept no mirror of the clients' states so far; "
                    "go on with stop, evict-by-reset or dense-resync"
                )
            self.mirror = self._open_mirror(new=not known)
            if known:
                self.mirror.require(checkpoint.token, checkpoint.server.round)
            self._bring_up(checkpoint)
        for entry in journal:
            session = entry.done_again(checkpoint.server, self._start)
            checkpoint = replace(checkpoint, server=session.state, weights=session.weights)
        return checkpoint

    def _start(
        self, state: ServerState, weights: Mapping[int, float], policies: Policies
    ) -> ServerSession:
        own = [weights.get(client, known) for client, known in enumerate(self._known)]
        return self._experiment.server(state=state, weights=own, policies=policies)

    def _open_mirror(self, *, new: bool) -> Mirror:
        problem = self._experiment.problem
        shape = (self._experiment.num_clients, problem.dimension)
        return Mirror(self._path.with_name("mirror.npy"), shape, problem.dtype, new=new)

    def _bring_up(self, checkpoint: Checkpoint) -> None:
        if self.mirror is not None:
            self.mirror.overwrite(
                checkpoint.mirrored, token=checkpoint.token, round=checkpoint.server.round
            )
