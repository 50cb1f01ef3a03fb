"""From a configuration to the two sides of a run; every engine builds them here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from fedef.allocator import keep_freed_memory
from fedef.client_session import ClientSession
from fedef.config import Config
from fedef.members import Policies
from fedef.methods import Method, make_method
from fedef.problems.base import Problem
from fedef.problems.registry import build_problem
from fedef.server_session import DEFAULT_POLICIES, Rows, ServerSession, client_weights
from fedef.sparse import is_smaller
from fedef.state import ClientState, ServerState


@dataclass(frozen=True)
class Experiment:
    """A configuration with what follows from it."""

    config: Config
    problem: Problem
    method: Method
    run_id: int
    """63 bits of a hash of the configuration."""

    @classmethod
    def build(cls, config: Config) -> Experiment:
        """Load the data, deal it to the clients and assemble the method.

        Raises
        ------
        ConfigError
            If the settings do not fit the problem or the data.
        """
        return cls.of(config, build_problem(config))

    @classmethod
    def of(cls, config: Config, problem: Problem) -> Experiment:
        """Experiment on a problem of one's own; the configuration's problem keys are not used.

        Raises
        ------
        ConfigError
            If k does not fit the dimension, or the schedule needs constants that are unknown.
        """
        keep_freed_memory()
        return cls(config, problem, make_method(config, problem), run_id(config))

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.problem.num_examples)

    @property
    def weights(self) -> tuple[float, ...]:
        """(n,) weights of the clients, not normalized."""
        return client_weights(self.config.weighting, self.problem.num_examples)

    def server(
        self,
        *,
        weights: Sequence[float] | None = None,
        state: ServerState | None = None,
        policies: Policies = DEFAULT_POLICIES,
        mirror: Rows | None = None,
        journaled: bool = False,
    ) -> ServerSession:
        """Return the server's session, at the start or at a stored state.

        `journaled`: whether it keeps what a round was told until the next one ends, for a journal.
        """
        return ServerSession(
            run_id=self.run_id,
            seed=self.config.seed,
            problem=self.problem,
            method=self.method,
            weights=self.weights if weights is None else weights,
            participation=self.config.participation,
            local_buffers=self.config.buffers == "local",
            state=state,
            policies=policies,
            mirror=mirror,
            max_norm_factor=self.config.max_norm_factor,
            journaled=journaled,
        )

    def client(self, client: int, *, state: ClientState | None = None) -> ClientSession:
        """Return a client's session, at the start or at a stored state."""
        return ClientSession(
            client,
            run_id=self.run_id,
            seed=self.config.seed,
            problem=self.problem,
            method=self.method,
            local_buffers=self.config.buffers == "local",
            sparse=self.stays_sparse,
            state=state,
        )

    @property
    def stays_sparse(self) -> bool:
        """Whether a client's g_i is expected to end the run smaller sparse than dense.

        A client asked j times holds at most j k entries. Where they would fill up g_i on the way,
        it is dense from the start, which is faster; the bits are the same.
        """
        visits = self.config.num_rounds * self.config.participation
        first = self.problem.dimension if self.method.dense_start else 0
        entries = first + visits * self.method.compressor.max_entries
        return is_smaller(entries, self.problem.dimension, self.problem.dtype)


def run_id(config: Config) -> int:
    """63 bits of BLAKE2b over the configuration, without the number of rounds (runs go on)."""
    flat = {key: value for key, value in config.to_flat().items() if key != "num-rounds"}
    digest = blake2b(json.dumps(flat, sort_keys=True).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
