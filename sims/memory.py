"""How much memory a run will need: told before its first round, and refused where it cannot be."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.participation import round_half_up
from fedef.sparse import entry_bytes

OBJECTS_BYTES = 2500
"""Of Python's objects around a client's arrays: session, state, pending update, server's record."""
CHECKPOINT_COPIES = 3
"""Of the states, while a checkpoint is written: packed, as a file's bytes, with their checksum."""
WORKER_BYTES = 260_000_000
"""Measured: of a Ray worker with its libraries, before it builds an experiment."""
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Of version 2 and 1: folder, limit, usage, and the part of it that is files' cache."""


@dataclass(frozen=True)
class Forecast:
    """Bytes that a run will hold on this machine, beside those that its process holds already."""

    clients: int
    """Clients that will have a state, in expectation."""
    num_clients: int
    """n; those that are never asked have none."""
    state_bytes: int
    """Of all clients' states at the end, at most, in expectation."""
    round_bytes: int
    """Of a round's work, replies and gradients."""
    model_bytes: int
    """Of the server's vectors and, in each process, the module with its gradient."""
    checkpoint_bytes: int
    """Of what is copied while a checkpoint is written; 0 without checkpoints."""
    held_bytes: int
    """Measured: what this process holds before the run, data and libraries."""
    workers: int
    """Processes that each build the data and the model again; 0: none but this one."""
    worker_bytes: int
    """Of libraries and data in each of them."""

    @property
    def needed_bytes(self) -> int:
        """What is to come."""
        again = self.workers * (self.worker_bytes + self.model_bytes)
        parts = (self.state_bytes, self.round_bytes, self.model_bytes, self.checkpoint_bytes)
        return sum(parts) + again

    def __str__(self) -> str:
        each = self.state_bytes / max(1, self.clients)
        text = (
            f"memory: {spelled(self.held_bytes)} held (data and libraries); to come: "
            f"{spelled(self.state_bytes)} of states ({self.clients} of {self.num_clients} clients, "
            f"{spelled(each)} each), {spelled(self.round_bytes)} a round, "
            f"{spelled(self.model_bytes)} of models, {spelled(self.checkpoint_bytes)} while a "
            "checkpoint is written"
        )
        if self.workers:
            each = self.worker_bytes + self.model_bytes
            text += (
                f", and data, libraries and model again in each of {self.workers} workers, "
                f"{spelled(each)} each"
            )
        return f"{text}; {spelled(self.needed_bytes)} in all"


def build_measured(config: Config) -> tuple[Experiment, int]:
    """Build the experiment; return it with the bytes of a worker that will build it, too.

    They are those of a worker's libraries and what building adds. In a process that has loaded
    torch before, a notebook say, that would be too little: then all that the process holds.
    """
    first, before = "torch" not in sys.modules, held_bytes()
    experiment = Experiment.build(config)
    held = held_bytes()
    return experiment, WORKER_BYTES + max(0, held - before) if first else held


def held_bytes() -> int:
    """What this process holds."""
    return int(psutil.Process().memory_info().rss)


def forecast(
    experiment: Experiment, *, workers: int = 0, worker_bytes: int = 0, checkpoints: bool = True
) -> Forecast:
    """What a run of the experiment will hold.

    A client asked j times holds at most min(j k entries, the dense vector), which is concave in j:
    its mean over the clients is at most its value at the mean (Jensen).

    Parameters
    ----------
    experiment
        Already built in this process, data and all.
    workers
        Ray's, on this machine; no more than there are clients are started.
    worker_bytes
        Of each, see `build_measured`.
    checkpoints
        Whether any is written.
    """
    problem, method, config = experiment.problem, experiment.method, experiment.config
    n, d, item = experiment.num_clients, problem.dimension, problem.dtype.itemsize
    asked = min(n, max(1, round_half_up(config.participation * n)))
    seen = n * (1.0 - (1.0 - asked / n) ** config.num_rounds)
    visits = config.num_rounds * asked / seen
    sent = d if method.compressor.kind == "dense" else method.compressor.max_entries
    update = sent * (item if method.compressor.kind == "dense" else item + 8)
    vector, held = d * item, 0.0
    if method.feedback:
        sparse = visits * sent * entry_bytes(problem.dtype)
        held = min(sparse, vector) if experiment.stays_sparse else vector
    kept = 2 * method.estimator.vectors * vector  # acknowledged and pending
    buffers = 2 * problem.initial_buffers().nbytes if config.buffers == "local" else 0
    states = seen * (held + kept + update + buffers)
    together = min(asked * vector, 2**26) if config.batched else 0
    return Forecast(
        clients=round(seen),
        num_clients=n,
        state_bytes=round(states + seen * OBJECTS_BYTES),
        round_bytes=round(asked * (4 * update + OBJECTS_BYTES)) + 2 * together,
        model_bytes=d * (6 * 8 + 4 * item),
        checkpoint_bytes=round(CHECKPOINT_COPIES * states) if checkpoints else 0,
        held_bytes=held_bytes(),
        workers=min(workers, n),
        worker_bytes=worker_bytes,
    )


def available_bytes() -> int:
    """What the machine, or the container that this process is in, can still give."""
    free: float = psutil.virtual_memory().available
    for folder, limit, usage, cache in _CGROUPS:
        allowed, used = _lines(folder / limit), _lines(folder / usage)
        if allowed and used and allowed[0].isdecimal():
            stat = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat"))
            # What is cached of files is given back as soon as memory is wanted.
            free = min(free, int(allowed[0]) - int(used[0]) + int(stat.get(cache, 0)))
    return max(0, int(free))


def require_memory(forecast: Forecast, available: int) -> None:
    """Refuse a run that cannot fit.

    Raises
    ------
    ConfigError
        With the numbers and the way out.
    """
    if forecast.needed_bytes <= available:
        return
    raise ConfigError(
        f"{forecast}, but {spelled(available)} are available; what makes it smaller: a smaller "
        "k-fraction, fewer num-rounds or less participation (fewer clients with a state), a method "
        "without momentum, compressor=top-k or rand-k, fewer workers; or more machines, by "
        "--engine ray --ray-address"
    )


def _lines(path: Path) -> list[str]:
    """A file of the kernel's; nothing where there is none, "max" where nothing is limited."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def spelled(count: float) -> str:
    """Bytes for people: three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
