"""The two messages of the protocol. Their field names live here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from fedef.errors import CorruptPayload
from fedef.state import NO_DIGEST

Field = int | float | str | bytes
UPDATE, NON_FINITE, STATE_MISMATCH, STALE_TASK = (
    "update",
    "non-finite",
    "state-mismatch",
    "stale-task",
)
STATUSES = (UPDATE, NON_FINITE, STATE_MISMATCH, STALE_TASK)
PAYLOADS = frozenset({"model", "update", "buffers", "sketch", "restored"})
"""Fields that are encoded vectors and may be large."""
_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bytes": bytes}


class _Message:
    """Plain fields out and in, so that an engine only has to carry names and values."""

    def to_fields(self) -> dict[str, Field]:
        """Return the message as plain values by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # each subclass is a dataclass

    def to_parts(self) -> tuple[dict[str, Field], dict[str, bytes]]:
        """Return small fields and payloads apart; empty payloads are left out."""
        values = self.to_fields()
        payloads = {name: values.pop(name) for name in PAYLOADS & values.keys()}
        return values, {
            name: data for name, data in payloads.items() if isinstance(data, bytes) and data
        }

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], payloads: Mapping[str, Any]) -> Self:
        """Inverse of `to_parts` for untrusted values.

        Raises
        ------
        CorruptPayload
            As `from_fields`.
        """
        return cls.from_fields({**dict.fromkeys(PAYLOADS, b""), **values, **payloads})

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_fields` for untrusted values.

        Raises
        ------
        CorruptPayload
            If a field is missing or of another type.
        """
        chosen: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]  # each subclass is a dataclass
            value = values.get(field.name)
            if type(value) is not _TYPES[str(field.type)]:
                raise CorruptPayload(
                    f"message: field {field.name!r} must be of type {field.type}, "
                    f"got {type(value).__name__}"
                )
            chosen[field.name] = value
        return cls(**chosen)


@dataclass(frozen=True)
class Task(_Message):
    """What the server asks of one client in one round."""

    run_id: int
    """63 bits of the configuration's hash: runs of one configuration share it."""
    client: int
    """0 to n - 1."""
    round: int
    """From 1."""
    acked: int
    """Round of the client's last update that the server has applied; 0: none."""
    digest: bytes
    """Hash chain over the payloads of the client that the server has applied."""
    model: bytes
    """x^k, encoded; the same object for all clients of a round."""
    buffers: bytes
    """Averaged buffers, encoded; empty where there are none."""
    token: str = ""
    """The run's own name, for state that is kept on disk: two runs of one configuration differ in
    it, a run and its resumption do not. Empty where nothing is kept."""
    life: int = 0
    """How often the server has made this client start again; a client of an older life drops its
    state, if the server holds nothing of it."""
    dense: int = 0
    """1: the update is to be dense, whatever the compressor."""
    restored: bytes = b""
    """g_i as the server's mirror has it, encoded, for a client that lost its own; else empty."""


@dataclass(frozen=True)
class Reply(_Message):
    """What a client answers."""

    run_id: int
    client: int
    round: int
    status: str
    """`update`, or why there is none: `non-finite`, `state-mismatch`, `stale-task`."""
    loss: float = 0.0
    """f_i(x^k), or its minibatch estimate."""
    examples: int = 0
    """Examples behind the gradient."""
    evaluations: int = 0
    """Gradients of single examples that were computed."""
    version: int = 0
    """Round of the last update that the client has committed."""
    digest: bytes = NO_DIGEST
    """Hash chain over the payloads that the client has committed."""
    update: bytes = b""
    """c_i, encoded."""
    buffers: bytes = b""
    """The client's buffers after the pass, encoded; empty where there are none."""
    sketch: bytes = b""
    """Summary of an independent gradient, encoded; empty where the method needs none."""
