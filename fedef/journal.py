"""What reached the server in the rounds since its last checkpoint, so that they can be done again.

All that a server does in a round follows from its state, its policies, the clients' weights, whom
it asked and what arrived. So a file a round, of the size of the round's updates, stands in for a
checkpoint of the size of the whole state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedef.durable import make_folder, read_arrays, sync_folder, write_arrays
from fedef.errors import ConfigError, FedefError
from fedef.members import Policies
from fedef.messages import Reply
from fedef.rounds import Heard, Unread
from fedef.server_session import ServerSession
from fedef.state import Arrays, ServerState

_WAY_OUT = (
    "restore the checkpoint and the journal of the same moment, or remove the journal and go on "
    "from the checkpoint with on-lost-state=evict-by-reset or dense-resync: the clients are ahead "
    "of it"
)
Start = Callable[[ServerState, Mapping[int, float], Policies], ServerSession]
"""Makes a session at a state, with the weights of the clients that have one."""


@dataclass(frozen=True)
class Entry:
    """One round of the server's."""

    token: str
    """The run's name."""
    round: int
    policies: Policies
    """Of the run when it did the round; another one may go on with others."""
    weights: Mapping[int, float]
    """Of the clients whose weight is not what it was at the checkpoint."""
    accepted: tuple[int, ...]
    heard: Heard

    def to_arrays(self) -> Arrays:
        """Named arrays that `from_arrays` turns back into this entry, bit for bit."""
        arrays: Arrays = {}
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
            "policies": asdict(self.policies),
            "weights": list(self.weights.items()),
            "accepted": self.accepted,
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
        return cls(
            facts["token"],
            facts["round"],
            Policies(**facts["policies"]),
            {int(client): float(weight) for client, weight in facts["weights"]},
            tuple(facts["accepted"]),
            heard,
        )

    def done_again(self, state: ServerState, start: Start) -> ServerSession:
        """The session after the round, from the state before it.

        Raises
        ------
        ConfigError
            If the round does not come out as it did.
        """
        session = start(state, self.weights, self.policies)
        early = self.heard.early
        _tell(session, self.heard.messages[:early])
        session.begin_round(self.heard.asked)
        _tell(session, self.heard.messages[early:])
        report = session.end_round()
        if (report.round, report.accepted) != (self.round, self.accepted):
            raise ConfigError(
                f"journal: round {self.round} does not come out as it did (updates of clients "
                f"{report.accepted} in the place of {self.accepted}); another version of fedef "
                "wrote it: go on with that one up to a checkpoint"
            )
        return session


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
        """Have a round on the disk when this returns.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        make_folder(self._folder, mode=0o700)
        write_arrays(self._folder / f"{entry.round}.fdf", entry.to_arrays(), mode=0o600)

    def forget(self, round: int) -> None:
        """Remove the rounds up to `round`, which a checkpoint holds, and what a kill left."""
        for aside in self._folder.glob(".*.part"):
            aside.unlink()
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
            If a file is corrupt or another run's, or one in between is missing.
        """
        entries: list[Entry] = []
        for path in self._files():
            if int(path.stem) <= round:
                continue
            try:
                entry = Entry.from_arrays(read_arrays(path))
            except (FedefError, LookupError, TypeError, ValueError) as error:
                raise ConfigError(f"journal {str(path)!r}: {error}; {_WAY_OUT}") from None
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
