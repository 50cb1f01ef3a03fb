"""Benchmarks of scale: many tiny clients, clients that nobody asks, and the server's own round."""

from __future__ import annotations

import resource
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch import nn

from fedef.codec import decode_dense, encode, encode_dense
from fedef.config import Config
from fedef.experiment import Experiment
from fedef.messages import UPDATE, Reply, Task
from fedef.problems.torch_examples import SharedExamples
from fedef.problems.torch_problem import TorchProblem
from fedef.server_session import ServerSession
from fedef.shared_rows import SharedRows
from fedef.updates import Update
from sims.bench_table import Row, compare
from sims.engine import InlineEngine

ASKED = 100
"""Clients asked each round in `clients_not_asked`."""
PARTICIPANTS = (10, 100, 1_000, 10_000)
GIGABYTES = 4.0


def tiny_clients(*, turns: int, num_clients: int = 1000, rows: int = 2) -> Iterator[Row]:
    """Gradients of 650-parameter softmax clients together over one by one, and whole rounds.

    Two rows each, as many as the digits have for 1,000 clients; the more rows, the more of the
    time is arithmetic that both do.
    """
    draw = torch.Generator().manual_seed(0)
    clients = [
        (torch.rand(rows, 64, generator=draw), torch.randint(10, (rows,), generator=draw))
        for _ in range(num_clients)
    ]
    problem = TorchProblem(
        "generated-softmax",
        module=lambda: nn.Linear(64, 10),
        loss=nn.functional.cross_entropy,
        clients=clients,
        seed=0,
    )
    x = decode_dense(encode_dense(problem.initial_point(), round=1), problem.dimension)
    nothing, everyone = problem.initial_buffers(), range(num_clients)
    what = f"of {num_clients} clients with {rows} rows together / one by one, d={problem.dimension}"
    yield Row.of_seconds(
        f"gradients {what}",
        compare(
            lambda: problem.local_many(everyone, x, rows=[None] * num_clients),
            lambda: [problem.local(client, x, buffers=nothing) for client in everyone],
            turns=turns,
        ),
        asked=1 / 8,
    )
    flat = {"method": "norm-ef21", "num-clients": num_clients, "eval-every": 0}
    together, alone = (
        InlineEngine(Experiment.of(Config.from_flat({**flat, "batched": batched}), problem))
        for batched in (True, False)
    )
    yield Row.of_seconds(
        f"rounds {what}", compare(together.round, alone.round, turns=turns), asked=1.0
    )


def clients_not_asked(*, turns: int, many: int = 100_000, few: int = 1_000) -> Iterator[Row]:
    """Rounds with 100 clients asked of many over of few, d = 7,850; and the memory at the end.

    Softmax 784-10 on generated rows that the clients share, 20 each; top-k 1 %.
    """
    draw = torch.Generator().manual_seed(0)
    inputs = torch.rand(20_000, 784, generator=draw)
    labels = torch.randint(10, (len(inputs),), generator=draw)
    of_many, of_few = (_shared_engine(inputs, labels, clients) for clients in (many, few))
    yield Row.of_seconds(
        f"a round with {ASKED} of {many} clients / of {few}, d=7850, {turns} rounds",
        compare(of_many.round, of_few.round, turns=turns),
        asked=1.1,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    yield Row(
        f"peak memory of this process, {len(of_many.clients)} of {many} clients with a state",
        f"{peak:.2f} GB",
        f"{GIGABYTES:g} GB",
        peak / GIGABYTES,
        1.0,
    )


def server_rounds(*, turns: int, participants: Sequence[int] = PARTICIPANTS) -> Iterator[Row]:
    """The server's part of a round, by participants: time and memory grow no faster than they do.

    Tasks out, replies in (top-k 1 % of d = 7,850, made beforehand), the step; one round with
    10 times the participants over 10 rounds.
    """
    for less, more in pairwise(participants):
        growth = more // less
        ours, beside = _ServerRounds(more), _ServerRounds(less)
        pairs = [
            (ours.seconds(), sum(beside.seconds() for _ in range(growth)))
            for _ in range(max(2, min(turns, 10 * turns // more)) + 1)
        ][1:]
        what = f"with {more} participants / {growth} with {less}, d=7850, k=78"
        measured = (
            median(pair[0] for pair in pairs),
            median(pair[1] for pair in pairs),
            median(pair[0] / pair[1] for pair in pairs),
        )
        yield Row.of_seconds(f"the server's round {what}", measured, asked=1.1)
        peaks = ours.peak_bytes(), growth * beside.peak_bytes()
        yield Row(
            f"memory of the server's round {what}",
            f"{peaks[0] / 1e6:.2f} MB",
            f"{peaks[1] / 1e6:.2f} MB",
            peaks[0] / peaks[1],
            1.1,
        )


def _shared_engine(inputs: torch.Tensor, labels: torch.Tensor, num_clients: int) -> InlineEngine:
    rows = SharedRows(labels.numpy(), num_clients=num_clients, rows=20, dirichlet_alpha=0.1, seed=0)
    problem = TorchProblem(
        "generated-images",
        module=lambda: nn.Linear(784, 10),
        loss=nn.functional.cross_entropy,
        clients=SharedExamples(inputs, labels, rows),
        seed=0,
    )
    settings = {
        "method": "norm-ef21",
        "num-clients": num_clients,
        "participation": ASKED / num_clients,
        "num-rounds": 1000,
        "eval-every": 0,
    }
    return InlineEngine(Experiment.of(Config.from_flat(settings), problem))


class _ServerRounds:
    """A server whose clients' replies are made while nobody looks at the clock."""

    def __init__(self, participants: int) -> None:
        nobody = (torch.zeros(1, 784), torch.zeros(1, dtype=torch.int64))
        problem = TorchProblem(
            "generated-images",
            module=lambda: nn.Linear(784, 10),
            loss=nn.functional.cross_entropy,
            clients=[nobody],
            seed=0,
        )
        experiment = Experiment.of(Config.from_flat({"method": "norm-ef21"}), problem)
        self._format = experiment.method.value_format
        self._entries = experiment.method.compressor.max_entries
        self._draws = np.random.default_rng(0)
        self._session: ServerSession = experiment.server(weights=[1.0] * participants)

    def seconds(self) -> float:
        """Seconds of one round."""
        began = time.perf_counter()
        tasks = self._session.begin_round()
        out = time.perf_counter() - began
        replies = [self._reply(task) for task in tasks]
        began = time.perf_counter()
        self._take(replies)
        return out + time.perf_counter() - began

    def peak_bytes(self) -> int:
        """Most bytes that one round has allocated beside the state and the replies."""
        tracemalloc.start()
        tasks = self._session.begin_round()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        replies = [self._reply(task) for task in tasks]
        tracemalloc.start()
        self._take(replies)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held + peak

    def _take(self, replies: Sequence[Reply]) -> None:
        refused = [reason for reply in replies if (reason := self._session.receive(reply))]
        if refused:
            raise AssertionError(f"the benchmark's own replies are refused: {refused[:3]}")
        self._session.end_round()

    def _reply(self, task: Task) -> Reply:
        indices = np.sort(self._draws.choice(7850, size=self._entries, replace=False))
        values = self._draws.standard_normal(self._entries).astype(np.float32)
        payload = encode(Update(7850, values, indices), self._format, round=task.round)
        return Reply(
            task.run_id,
            task.client,
            task.round,
            UPDATE,
            version=task.acked,
            digest=task.digest,
            loss=1.0,
            examples=1,
            update=payload,
        )
