"""Benchmarks that compare side by side in one run and print ratios.

Contenders take turns, each turn gives one ratio, and the median ratio is reported: what else the
machine does falls on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedef.codec import encode
from fedef.compressors import TopK, top_k_indices
from fedef.errors import ConfigError
from fedef.threads import single_threaded
from fedef.value_formats import FORMATS
from sims.bench_rounds import CONTENDERS, contenders, installed
from sims.bench_scale import clients_not_asked, server_rounds, tiny_clients
from sims.bench_table import Row, compare, compare_timed
from sims.bench_task import CONFIG, NUM_CLIENTS, build, client_data, mlp
from sims.engine import InlineEngine

COMPARISONS = (
    ("ray", "inline", 0.62),
    ("inline", "flower-fedavg", 1 / 9),
    ("ray", "flower-fedavg", 1 / 14),
    ("flower-fedef", "flower-fedavg", 1.05),
    ("inline", "pfl-fedavg", 1.0),
)
"""Ours, beside, and the ratio that is asked."""


GROUPS: Mapping[str, Callable[[int], Iterator[Row]]] = {
    "core": lambda turns: core(turns=turns),
    "ray": lambda turns: whole_rounds(COMPARISONS[:1], turns=max(1, turns // 3)),
    "rounds": lambda turns: whole_rounds(COMPARISONS[1:], turns=max(1, turns // 3)),
    "tiny": lambda turns: tiny_clients(turns=turns),
    "clients": lambda turns: clients_not_asked(turns=turns),
    "server": lambda turns: server_rounds(turns=turns),
}
"""Comparisons by name, of so many turns."""


def run_benchmarks(*, turns: int, only: str = "") -> Iterator[Row]:
    """Every comparison or one group of them, one torch thread, `turns` turns of the contenders.

    Raises
    ------
    ConfigError
        If there is no such group.
    """
    if only and only not in GROUPS:
        raise ConfigError(f"only: must be one of {', '.join(GROUPS)}, got {only!r}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with single_threaded():
            for name in (only,) if only else GROUPS:
                yield from GROUPS[name](turns)
    finally:
        torch.set_num_threads(threads)


def core(*, turns: int) -> Iterator[Row]:
    """The engine and the codec against bare loops."""
    yield engine_overhead(turns=turns)
    yield selection_and_encoding(turns=turns)


def engine_overhead(*, turns: int) -> Row:
    """Inline engine over a bare loop: MLP 784-128-10, generated data, top-k 1 %, full batch.

    The bare loop does the gradient, the same top-k selection and EF21, and nothing else: no
    encoding, no checks, no acknowledgement, no reports.
    """
    experiment = build(CONFIG)
    problem = experiment.problem
    engine = InlineEngine(experiment)
    bare = _BareLoop(problem.initial_point(), client_data(), k=problem.dimension // 100)
    return Row.of_seconds(
        f"a round of the inline engine / of a bare loop, {NUM_CLIENTS} clients, "
        f"d={problem.dimension}",
        compare(engine.round, bare.round, turns=turns),
        asked=1.2,
    )


def whole_rounds(comparisons: Sequence[tuple[str, str, float]], *, turns: int) -> Iterator[Row]:
    """Rounds of engines and of other simulators on the same task, each in a process of its own.

    Only the two that are compared run: an idle Flower or Ray takes a part of a core.

    FedAvg here is one full-batch gradient step of every client in a round, so that all compute the
    same gradients; ours also compresses, encodes, decodes and checks. Start-up counts for nobody.
    Flower's FedAvg has Ray as Flower starts it, the Flower engine as `fedef run` has it started
    (`ray_tuning`).
    """
    for ours, beside, asked in comparisons:
        if installed(beside):
            with contenders(ours, beside) as (one, other):
                measured = compare_timed(one.seconds, other.seconds, turns=turns)
            what = f"a round: {CONTENDERS[ours].shown} / {CONTENDERS[beside].shown}"
            yield Row.of_seconds(what, measured, asked=asked)


def selection_and_encoding(*, turns: int, dimension: int = 10**6, k: int = 10**4) -> Row:
    """Select the top k and encode them, over `torch.topk` of the magnitudes alone."""
    vector = np.random.default_rng(0).standard_normal(dimension).astype(np.float32)
    tensor = torch.from_numpy(vector)
    compressor, value_format = TopK(k, dimension), FORMATS["float32"]
    return Row.of_seconds(
        f"top-k and encoding / torch.topk alone, d={dimension}, k={k}",
        compare(
            lambda: encode(compressor.compress(vector), value_format),
            lambda: torch.topk(tensor.abs(), k),
            turns=turns,
        ),
        asked=0.25,
    )


class _BareLoop:
    """Normalized EF21 written down as a script would."""

    def __init__(
        self, x: np.ndarray, clients: list[tuple[torch.Tensor, torch.Tensor]], *, k: int
    ) -> None:
        self.module = mlp()
        self.parameters = list(self.module.parameters())
        self.clients, self.k, self.step = clients, k, 0
        self.x = x
        self.g = np.zeros(x.size)
        self.g_i = [np.zeros_like(x) for _ in clients]

    def round(self) -> None:
        position = 0
        for parameter in self.parameters:
            part = self.x[position : position + parameter.numel()]
            parameter.data.copy_(torch.from_numpy(part).view_as(parameter))
            position += parameter.numel()
        for (inputs, targets), g_i in zip(self.clients, self.g_i, strict=True):
            loss = nn.functional.cross_entropy(self.module(inputs), targets)
            gradients = torch.autograd.grad(loss, self.parameters)
            gradient = torch.cat([part.reshape(-1) for part in gradients]).numpy()
            correction = gradient - g_i
            indices = top_k_indices(correction, self.k)
            values = correction[indices]
            g_i[indices] += values
            self.g[indices] += values / len(self.clients)
        self.step += 1
        scale = 1.0 / self.step**0.5 / np.linalg.norm(self.g)
        self.x = (self.x - scale * self.g).astype(np.float32)
