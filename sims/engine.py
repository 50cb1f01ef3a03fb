"""What an engine is, and the inline one: the sessions of a run in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from fedef.client_session import ClientSession
from fedef.cohort import work_of
from fedef.experiment import Experiment
from fedef.messages import Reply
from fedef.server_session import RoundReport, ServerSession
from fedef.state import Arrays, ClientState, ServerState

Network = Callable[[list[Reply]], Sequence[Reply]]


class Engine(Protocol):
    """Carries tasks and replies between the sessions of one run, wherever the clients are."""

    experiment: Experiment
    server: ServerSession

    def round(self) -> RoundReport:
        """One round with sampled clients."""

    def client_arrays(self) -> Iterator[tuple[int, Arrays]]:
        """The clients that were ever asked, in order, each state in the form of named arrays."""

    def saved(self, path: Path) -> None:
        """Hear that the whole state of this moment is in the checkpoint at `path`."""


def reliable(replies: list[Reply]) -> list[Reply]:
    """Deliver every reply once, in order."""
    return replies


class InlineEngine:
    """Carries tasks and replies by function calls; clients are made when they are first asked."""

    def __init__(
        self,
        experiment: Experiment,
        *,
        server_state: ServerState | None = None,
        client_states: dict[int, ClientState] | None = None,
    ) -> None:
        self.experiment = experiment
        self.server: ServerSession = experiment.server(state=server_state)
        self.clients: dict[int, ClientSession] = {
            client: experiment.client(client, state=state)
            for client, state in (client_states or {}).items()
        }

    def round(
        self, clients: Sequence[int] | None = None, *, network: Network = reliable
    ) -> RoundReport:
        """One round.

        Parameters
        ----------
        clients
            Who takes part; None: sampled.
        network
            What becomes of the replies on their way; for tests that lose, repeat or delay them.
        """
        asked = [(self._client(task.client), task) for task in self.server.begin_round(clients)]
        work = list(work_of(self.experiment, asked))
        replies = [self._client(done.task.client).answer(done) for done in work]
        for reply in network(replies):
            self.server.receive(reply)
        return self.server.end_round()

    def client_arrays(self) -> Iterator[tuple[int, Arrays]]:
        """See `Engine`."""
        for client, session in sorted(self.clients.items()):
            yield client, session.state.to_arrays()

    def saved(self, path: Path) -> None:
        """Nothing to do: this process holds the state that the checkpoint holds."""

    def _client(self, client: int) -> ClientSession:
        if client not in self.clients:
            self.clients[client] = self.experiment.client(client)
        return self.clients[client]
