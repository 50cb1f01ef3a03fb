"""A ServerApp whose messages get lost, late, doubled and damaged, for the fault harness alone.

TLS lets nobody drop or change a single message on the way, so it is done where TLS ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedef.experiment import Experiment
from fedef.randomness import stream
from sims.faults.messages import (
    CALM,
    CALM_ROUNDS,
    FLIPPED,
    HELD_BACK,
    LOG,
    NOT_SENT,
    SHARE,
    TWICE,
    drawn,
    flipped,
)
from strategies.app import make_app
from strategies.error_feedback import ErrorFeedback

PATIENCE_SECONDS = 600.0


class FaultyErrorFeedback(ErrorFeedback):
    """The strategy with faults between it and the network."""

    def __init__(self, experiment: Experiment, **options: Any) -> None:
        super().__init__(experiment, **options)
        self._share = float(os.environ[SHARE])
        self._log, self._calm = Path(os.environ[LOG]), Path(os.environ[CALM])
        self._seed = experiment.config.seed
        self._first_calm = experiment.config.num_rounds - CALM_ROUNDS + 1
        self._held_back: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Tasks, less some; the calm rounds wait for the end of the faults and for everybody."""
        if self._round >= self._first_calm:
            while not self._calm.exists():
                time.sleep(0.1)
            self._roll.wait_for(grid, self._experiment.num_clients, seconds=PATIENCE_SECONDS)
        super().configure_train(server_round, arrays, config, grid)
        for client in [client for client in self._sent if self._fault(client) == NOT_SENT]:
            self._count(NOT_SENT)
            del self._sent[client]
        return list(self._sent.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What was held back in the last round, and what the faults leave of this one's."""
        arrived, self._held_back = self._held_back, []
        for message in replies:
            arrived += [message] if message.has_error() else self._delivered(message)
        return super().aggregate_train(server_round, arrived)

    def _delivered(self, message: Message) -> list[Message]:
        (client,) = (
            client
            for client, task in self._sent.items()
            if task.metadata.dst_node_id == message.metadata.src_node_id
        )
        fault = self._fault(client)
        if fault is None:
            return [message]
        self._count(fault)
        if fault == HELD_BACK:
            self._held_back.append(message)
        elif fault == TWICE:
            return [message, message]
        elif fault == FLIPPED:
            payloads = message.content.array_records["payloads"]
            update = payloads["update"]
            if not update.data:  # the client sent word that it has none
                return []
            data = flipped(update.data, stream(self._seed, "flip", self._round, client))
            payloads["update"] = Array(update.dtype, update.shape, update.stype, data)
            return [message]
        return []

    @property
    def _round(self) -> int:
        """The round that is open, or comes next."""
        done = self._checkpoint.server.round if self._session is None else self._session.round
        return done + 1

    def _fault(self, client: int) -> str | None:
        if self._round >= self._first_calm:
            return None
        return drawn(self._share, self._seed, self._round, client)

    def _count(self, fault: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{fault}\n")


app = make_app(strategy_type=FaultyErrorFeedback)
