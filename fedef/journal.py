"""What reached the server in the rounds since its last checkpoint, so that they can be done again.

All that a server does in a round follows from its state, the clients' weights, whom it asked and
what arrived. So a file a round, of the size of the round's updates, stands in for a checkpoint of
the size of the whole state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedef.durable import discard_leftovers, make_folder, read_arrays, sync_folder, write_arrays
from fedef.errors import ConfigError
from fedef.messages import Reply
from fedef.rounds import Heard, Unread
from fedef.server_session import ServerSession
from fedef.state import Arrays, ServerState

_WAY_OUT = (
    "restore the checkpoint and the journal of the same moment, or remove the journal to go on "
    "from the checkpoint, where the clients that are ahead count as clients that lost their state"
)
Start = Callable[[ServerState, Sequence[float]], ServerSession]
"""Makes a session at a state, with the clients' weights."""


@dataclass(frozen=True)
class Entry:
    """One round of the server's."""

    token: str
    """The run's name."""
    round: int
    weights: tuple[float, ...]
    """(n,)."""
    heard: Heard

    def to_arrays(self) -> Arrays:
        """Named arrays that `from_arrays` turns back into this entry, bit for bit."""
        arrays: Arrays = {"weights": np.array(self.weights)}
        messages: list[dict[str, Any]] = []
        for number, message in enumerate(self.heard.messages):
            if isinstance(message, Unread):
                messages.append({"reason": message.reason, "client": message.client})
                continue
            values, payloads = message.to_parts()
            messages.append({"reply": values | {"digest": message.digest.hex()}})
            for name, payload in payloads.items():
                arrays[f"{name}/{number}"] = np.frombuffer(payload, dtype=np.uint8)
        facts = {
            "token": self.token,
            "round": self.round,
            "asked": self.heard.asked,
            "early": self.heard.early,
            "messages": messages,
        }
        return arrays | {"facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Entry:
        """Inverse of `to_arrays`.

        Raises
        ------
        LookupError, TypeError, ValueError
            If the arrays are not those of an entry.
        """
        facts = json.loads(arrays["facts"].tobytes())
        payloads: dict[int, dict[str, bytes]] = {}
        for name, array in arrays.items():
            kind, _, place = name.partition("/")
            if place:
                payloads.setdefault(int(place), {})[kind] = array.tobytes()
        messages: list[Reply | Unread] = []
        for number, told in enumerate(facts["messages"]):
            if "reply" in told:
                values = told["reply"] | {"digest": bytes.fromhex(told["reply"]["digest"])}
                messages.append(Reply.from_parts(values, payloads.get(number, {})))
            else:
                messages.append(Unread(told["reason"], told["client"]))
        heard = Heard(tuple(facts["asked"]), tuple(messages), facts["early"])
        return cls(facts["token"], facts["round"], tuple(arrays["weights"].tolist()), heard)

    def done_again(self, state: ServerState, start: Start) -> ServerState:
        """The state after the round, from the one before it."""
        session = start(state, self.weights)
        early = self.heard.early
        _tell(session, self.heard.messages[:early])
        session.begin_round(self.heard.asked)
        _tell(session, self.heard.messages[early:])
        session.end_round()
        return session.state


class Journal:
    """A folder with one file for each round since the checkpoint beside it.

    Parameters
    ----------
    folder
        Made when the first entry is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(self, entry: Entry) -> None:
        """Have a round on the disk when this returns."""
        make_folder(self._folder)
        write_arrays(self._folder / f"{entry.round}.fdf", entry.to_arrays(), mode=0o600)

    def forget(self, round: int) -> None:
        """Remove the rounds up to `round`, which a checkpoint holds."""
        gone = [path for path in self._files() if int(path.stem) <= round]
        for path in gone:
            path.unlink()
        if gone:
            sync_folder(self._folder)

    def after(self, round: int, token: str) -> list[Entry]:
        """The rounds after `round`, in order.

        Raises
        ------
        ConfigError
            If a file is corrupt, missing, or another run's.
        """
        entries: list[Entry] = []
        for path in self._files():
            discard_leftovers(path)
            if int(path.stem) <= round:
                continue
            arrays = read_arrays(path)
            try:
                entry = Entry.from_arrays(arrays)
            except (LookupError, TypeError, ValueError) as error:
                raise ConfigError(f"journal {str(path)!r}: {error!r}; {_WAY_OUT}") from None
            if (entry.token, entry.round) != (token, round + 1 + len(entries)):
                raise ConfigError(
                    f"journal {str(path)!r}: holds round {entry.round} of run {entry.token!r}, "
                    f"expected round {round + 1 + len(entries)} of run {token!r}; {_WAY_OUT}"
                )
            entries.append(entry)
        return entries

    def _files(self) -> list[Path]:
        """In the order of the rounds."""
        found = (path for path in self._folder.glob("*.fdf") if path.stem.isdecimal())
        return sorted(found, key=lambda path: int(path.stem))


def _tell(session: ServerSession, messages: Sequence[Reply | Unread]) -> None:
    for message in messages:
        if isinstance(message, Unread):
            session.refuse(message.reason, message.client)
        else:
            session.receive(message)
