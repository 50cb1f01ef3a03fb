"""One round at the server: what was asked, what arrived, and the report of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedef.judge import Accepted
from fedef.messages import Reply, Task
from fedef.summaries import Summary
from fedef.vectors import Vector, norm

Weights = Sequence[float]


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round."""

    round: int
    """From 1."""
    step_size: float
    """gamma_k, k = round - 1."""
    estimate_norm: float
    """||g^k||_2, the norm of the mean estimate that the step followed."""
    asked: tuple[int, ...]
    """Clients that got a task."""
    accepted: tuple[int, ...]
    """Clients whose update was applied."""
    refusals: dict[str, int]
    """Replies that were refused, by reason."""
    train_loss: float | None
    """Weighted mean of the accepted clients' losses at the model they got; None without any."""
    uplink_bytes: int
    """Bytes of all encoded updates, buffers and sketches that arrived, refused ones too."""
    downlink_bytes: int
    """Bytes of all encoded models, buffers and restored states that were sent out."""
    bound_bytes: int
    """The papers' uplink figure: values only, positions free."""
    gradient_evaluations: int
    """Gradients of single examples behind the accepted updates."""
    independent_norm: float | None
    """The server's estimate of ||mean g'_i||, where the method asks for it."""

    @property
    def missing(self) -> tuple[int, ...]:
        """Clients that were asked and from which nothing was applied."""
        return tuple(sorted(set(self.asked) - set(self.accepted)))


@dataclass(frozen=True)
class Unread:
    """A message that was refused before it reached the session."""

    reason: str
    client: int | None
    """Who sent it, where that is known."""


@dataclass(frozen=True)
class Heard:
    """All that a round was told; with the state before it, it makes the state after it."""

    asked: tuple[int, ...]
    messages: tuple[Reply | Unread, ...]
    """In the order in which they came, refused ones too."""
    early: int = 0
    """How many of them came before the round began."""


@dataclass
class Round:
    """What was asked, and what has arrived since the last round was ended."""

    tasks: dict[int, Task] = field(default_factory=dict)
    """By client; none before the round begins."""
    accepted: dict[int, Accepted] = field(default_factory=dict)
    """By client."""
    refusals: Counter[str] = field(default_factory=Counter)
    """By reason."""
    uplink_bytes: int = 0
    """Of all that arrived, refused or not."""
    messages: list[Reply | Unread] = field(default_factory=list)
    early: int = 0
    """How many of them came before the round began."""
    begun: bool = False

    def too_large(self, factor: float) -> list[int]:
        """Clients whose update's norm is beyond `factor` times the median; of three or more."""
        if len(self.accepted) < 3:
            return []
        norms = {client: norm(of.update.values) for client, of in self.accepted.items()}
        bound = factor * float(np.median(list(norms.values())))
        return [client for client, size in norms.items() if size > bound]

    def independent_norm(self, weights: Weights, summary: Summary) -> float | None:
        """Norm of the weighted mean of the independent gradients; None without any weight."""
        parts = [(weights[c], r.summary) for c, r in sorted(self.accepted.items())]
        weight = sum(weight for weight, _ in parts)
        if weight == 0:
            return None
        mean = sum((w / weight) * part.astype(np.float64) for w, part in parts if part is not None)
        return summary.norm(np.asarray(mean))

    def averaged_buffers(self, weights: Weights, buffers: Vector) -> Vector:
        """Weighted mean of the accepted clients' buffers; unchanged where nobody has weight."""
        weight = sum(weights[client] for client in sorted(self.accepted))
        if not buffers.size or weight == 0:
            return buffers
        mean = np.zeros(buffers.size, dtype=np.float64)
        for client, reply in sorted(self.accepted.items()):
            mean += (weights[client] / weight) * reply.buffers
        return mean.astype(buffers.dtype)

    def report(
        self,
        round: int,
        weights: Weights,
        *,
        step_size: float,
        estimate_norm: float,
        independent_norm: float | None,
        value_bytes: int,
    ) -> RoundReport:
        """Return the report of round `round`, once all has arrived."""
        accepted = sorted(self.accepted)
        return RoundReport(
            round=round,
            step_size=step_size,
            estimate_norm=estimate_norm,
            asked=tuple(self.tasks),
            accepted=tuple(accepted),
            refusals=dict(sorted(self.refusals.items())),
            train_loss=self._mean_loss(weights),
            uplink_bytes=self.uplink_bytes,
            downlink_bytes=sum(
                len(t.model) + len(t.buffers) + len(t.restored) for t in self.tasks.values()
            ),
            bound_bytes=sum(
                self.accepted[client].update.values.size * value_bytes for client in accepted
            ),
            gradient_evaluations=sum(self.accepted[client].evaluations for client in accepted),
            independent_norm=independent_norm,
        )

    def _mean_loss(self, weights: Weights) -> float | None:
        accepted = sorted(self.accepted)
        own = [weights[client] for client in accepted]
        if not sum(own) > 0:
            return None
        losses = [self.accepted[client].loss for client in accepted]
        return sum(w * v for w, v in zip(own, losses, strict=True)) / sum(own)
