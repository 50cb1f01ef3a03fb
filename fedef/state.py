"""What a client and the server remember, as immutable values, and their form as named arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest

from fedef.errors import ConfigError, StateMismatch
from fedef.sparse import SparseVector, smallest_form
from fedef.updates import Update
from fedef.vectors import Vector

NO_DIGEST = bytes(8)
Arrays = dict[str, NDArray[Any]]


def next_digest(digest: bytes, payload: bytes) -> bytes:
    """Hash chain over the committed payloads: XXH3-64 of digest || payload, O(k).

    It tells states that drifted apart; it is no defense against a client that lies.
    """
    return xxh3_64_digest(digest + payload)


@dataclass(frozen=True, eq=False)
class Pending:
    """What a client sent last and folds into its state once the server has acknowledged it."""

    round: int
    """The round of the task that it answered."""
    g: Update
    """The entries of g_i once the update is committed: what was, plus what the server decodes."""
    memory: Mapping[str, Vector]
    buffers: Vector
    digest: bytes
    """The chain's value after this update."""


@dataclass(frozen=True, eq=False)
class ClientState:
    """Everything that a client remembers."""

    held: SparseVector | Vector
    """(d,) of the problem's dtype: g_i, the server's estimate of this client's gradient, dense or
    sparse with the same bits. The one exception to immutability: a commit writes into a dense one,
    so an older state must not be used."""
    memory: Mapping[str, Vector]
    """The estimator's, by name: (d,) momentum v, last point x; empty before the first commit."""
    buffers: Vector
    """(b,) the client's own buffers with buffers=local, else empty."""
    version: int = 0
    """Round of the last update that the server acknowledged; 0: none."""
    digest: bytes = NO_DIGEST
    """Hash chain over the acknowledged payloads."""
    round: int = 0
    """Round of the last task that was handled."""
    pending: Pending | None = None
    life: int = 0
    """How often the server has made this client start again."""

    @property
    def dimension(self) -> int:
        """Length of g_i."""
        return self.held.dimension if isinstance(self.held, SparseVector) else self.held.size

    @property
    def g(self) -> Vector:
        """(d,) g_i; do not write into it."""
        return self.held.dense() if isinstance(self.held, SparseVector) else self.held

    def settled(self, acked: int, digest: bytes) -> ClientState:
        """Commit the pending update if the server has applied it, else roll it back, as one.

        Raises
        ------
        StateMismatch
            If neither the state nor the state with its pending update is what the server holds.
        """
        if self.pending is not None and (acked, digest) == (
            self.pending.round,
            self.pending.digest,
        ):
            # In place: a copy would cost O(d). Overwriting twice is overwriting once, so that an
            # interruption between this line and the new state does no harm.
            held = self.held
            if isinstance(held, SparseVector):
                held = held.overwritten(self.pending.g)
            else:
                self.pending.g.overwrite(held)
            return replace(
                self,
                held=held,
                memory=self.pending.memory,
                buffers=self.pending.buffers,
                version=acked,
                digest=digest,
                pending=None,
            )
        if (acked, digest) == (self.version, self.digest):
            return replace(self, pending=None)
        raise StateMismatch(
            f"the server has applied this client's updates up to round {acked}, "
            f"the client's own state is of round {self.version}"
        )

    def to_arrays(self) -> Arrays:
        """Named arrays that `from_arrays` turns back into this state, bit for bit.

        The arrays depend on the values of g_i, not on the form in which it is held.
        """
        held = smallest_form(self.held)
        arrays: Arrays = {"buffers": self.buffers}
        if isinstance(held, SparseVector):
            arrays |= {"g.values": held.values, "g.indices": held.indices}
        else:
            arrays["g"] = held
        facts: dict[str, Any] = {
            "dimension": self.dimension,
            "version": self.version,
            "digest": self.digest.hex(),
            "round": self.round,
            "life": self.life,
        }
        arrays |= {f"memory.{name}": vector for name, vector in self.memory.items()}
        if self.pending is not None:
            update = self.pending.g
            facts["pending"] = {
                "round": self.pending.round,
                "digest": self.pending.digest.hex(),
                "seed": update.seed,
            }
            arrays["pending.values"] = update.values
            arrays["pending.buffers"] = self.pending.buffers
            if update.indices is not None:
                arrays["pending.indices"] = update.indices
            arrays |= {f"pending.memory.{name}": v for name, v in self.pending.memory.items()}
        return {**arrays, "facts": _json_array(facts)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ClientState:
        """Inverse of `to_arrays`.

        Raises
        ------
        ConfigError
            If an array is missing or inconsistent.
        """
        try:
            facts = _from_json_array(arrays["facts"])
            dimension = int(facts["dimension"])
            held: SparseVector | Vector
            if "g" in arrays:
                held = np.array(arrays["g"])
            else:
                held = SparseVector(dimension, arrays["g.indices"], arrays["g.values"])
            pending = None
            if "pending" in facts:
                of = facts["pending"]
                pending = Pending(
                    round=int(of["round"]),
                    g=Update(
                        dimension,
                        arrays["pending.values"],
                        arrays.get("pending.indices"),
                        of["seed"],
                    ),
                    memory=_named(arrays, "pending.memory."),
                    buffers=arrays["pending.buffers"],
                    digest=bytes.fromhex(of["digest"]),
                )
            return cls(
                held=held,
                memory=_named(arrays, "memory."),
                buffers=arrays["buffers"],
                version=int(facts["version"]),
                digest=bytes.fromhex(facts["digest"]),
                round=int(facts["round"]),
                pending=pending,
                life=int(facts["life"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"client state: {error!r} is missing or malformed; it was not written by fedef, "
                "or by another version: start the run again"
            ) from None


@dataclass(frozen=True)
class ClientRecord:
    """What the server knows of one client."""

    version: int
    """Round of the last update that was applied; 0: none."""
    digest: bytes
    """Hash chain over the applied payloads."""


@dataclass(frozen=True)
class Conduct:
    """How a client has behaved, where that is worth remembering."""

    refused: int = 0
    """Replies that were refused."""
    strikes: int = 0
    """Offences since its last accepted reply."""
    claims: int = 0
    """How often it said that it lost its state."""
    lives: int = 0
    """How often it alone was made to start again."""
    handing_back: bool = False
    """Whether its next tasks carry the mirror's g_i."""
    excluded: str = ""
    """Why it is not asked any more; empty: it is."""


@dataclass(frozen=True, eq=False)
class ServerState:
    """Everything that the server remembers between rounds."""

    round: int
    """Rounds done."""
    x: Vector
    """(d,) the model, in the problem's dtype."""
    buffers: Vector
    """(b,) averaged buffers; empty without any, or where they stay local."""
    total: Vector
    """(d,) float64: sum_i w_i g_i over all clients, weights not normalized."""
    records: Mapping[int, ClientRecord]
    """By client; a client without a record has g_i = 0."""
    memory: Arrays
    """What the stepper keeps, by name."""
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    refusals: Mapping[str, int] | None = None
    """Refused replies so far, by reason."""
    conduct: Mapping[int, Conduct] = field(default_factory=dict)
    """By client; one without is beyond reproach."""
    epoch: int = 0
    """How often all clients were made to start again."""

    def to_arrays(self) -> Arrays:
        """Named arrays that `from_arrays` turns back into this state, bit for bit."""
        clients = sorted(self.records)
        facts = {
            "round": self.round,
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
            "refusals": dict(self.refusals or {}),
            "conduct": {str(client): asdict(of) for client, of in sorted(self.conduct.items())},
            "epoch": self.epoch,
            "digests": [self.records[client].digest.hex() for client in clients],
        }
        return {
            "x": self.x,
            "buffers": self.buffers,
            "total": self.total,
            "clients": np.array(clients, dtype=np.int64),
            "versions": np.array([self.records[c].version for c in clients], dtype=np.int64),
            "facts": _json_array(facts),
            **{f"memory.{name}": array for name, array in self.memory.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ServerState:
        """Inverse of `to_arrays`.

        Raises
        ------
        ConfigError
            If an array is missing or inconsistent.
        """
        try:
            facts = _from_json_array(arrays["facts"])
            rows = zip(
                arrays["clients"].tolist(),
                arrays["versions"].tolist(),
                facts["digests"],
                strict=True,
            )
            return cls(
                round=int(facts["round"]),
                x=arrays["x"],
                buffers=arrays["buffers"],
                total=arrays["total"],
                records={
                    client: ClientRecord(version, bytes.fromhex(digest))
                    for client, version, digest in rows
                },
                memory=_named(arrays, "memory."),
                uplink_bytes=int(facts["uplink_bytes"]),
                downlink_bytes=int(facts["downlink_bytes"]),
                refusals={str(k): int(v) for k, v in facts["refusals"].items()},
                conduct={int(k): Conduct(**of) for k, of in facts["conduct"].items()},
                epoch=int(facts["epoch"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"server state: {error!r} is missing or malformed; it was not written by fedef, "
                "or by another version: start the run again"
            ) from None


def _named(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    """Arrays whose name starts with `prefix`, by the rest of it."""
    return {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}


def _json_array(facts: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(facts, sort_keys=True).encode(), dtype=np.uint8)


def _from_json_array(array: NDArray[Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(array.astype(np.uint8).tobytes())
    return loaded
