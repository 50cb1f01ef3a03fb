"""Any torch module and loss as a problem in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fedef.errors import ConfigError
from fedef.problems.base import Evaluation, LocalResult, Smoothness
from fedef.problems.files import starting_point
from fedef.problems.torch_buffers import NO_BUFFERS
from fedef.problems.torch_examples import (
    Examples,
    OwnExamples,
    SharedExamples,
    alike,
    owned,
    stacked,
)
from fedef.problems.torch_module import FlatModule, Loss
from fedef.problems.torch_runtime import OneThread, hold_cudnn_to_its_bits, usable_device
from fedef.randomness import stream_seed
from fedef.vectors import IntVector, Vector, norm

_ROWS_IN_A_GROUP = 16384


class TorchProblem:
    """f_i(x) = loss(module(inputs_i; x), targets_i) over the module's trainable parameters.

    x holds the parameters with ``requires_grad`` in the order of ``named_parameters``; frozen ones
    stay as they were made. Floating-point buffers (batch-norm statistics) are the `buffers` of the
    protocol. Other buffers never travel: each call starts from their first values, so that a call
    depends on its arguments alone.

    Every call runs on one thread, on memory that torch allocated, whose alignment is always the
    same: both change the bits of a sum. The module is working memory, so calls from several
    threads at once need a problem each.

    On a CUDA device live the module and the data; points and gradients go in and out as the same
    NumPy vectors, and x^0 is the same. The bits are that device's own, because its sums have
    another order; cuDNN is held to deterministic algorithms without TF32, in the whole process.

    Parameters
    ----------
    name
        The problem's name.
    module
        Makes the module; called once, under a generator of torch seeded from `seed`.
    loss
        Mean loss of (outputs, targets), a scalar.
    clients
        (inputs, targets) of each client, equally long; a client may have none. Or examples that
        the clients share, which costs no memory for a client.
    test
        Held-out (inputs, classes); the accuracy is that of the largest output.
    seed
        The run's seed.
    x0
        (d,): another initial point.
    rows_at_once
        Rows of one pass of `evaluate`, and of `local` where the module has no floating-point
        buffers: memory then no longer grows with a client's data. The loss must be a mean over
        rows that do not see each other in those passes; parts are summed in float64. None: all.
    largest_batch
        Rows that `local` takes at most where it cannot be split, because the module has buffers.
        None: any number.
    evaluated
        Rows of each client that `evaluate` uses, whose loss and gradient norm are then estimates;
        a client's may not be empty unless its data are. None: all.
    device
        ``cpu`` or ``cuda``.
    batched
        Whether `evaluate` takes clients with equally many rows together, as `local_many` does:
        faster for many tiny clients, other last bits.

    Raises
    ------
    ConfigError
        If there is no such device, the module has no trainable parameter or draws random numbers, a
        client's inputs and targets differ in length, no client has examples, `x0` has the wrong
        shape, or `rows_at_once` or `evaluated` is out of range.
    """

    smoothness: Smoothness | None = None

    def __init__(
        self,
        name: str,
        *,
        module: Callable[[], nn.Module],
        loss: Loss,
        clients: Sequence[Examples] | SharedExamples,
        test: Examples | None = None,
        seed: int,
        x0: Vector | None = None,
        rows_at_once: int | None = None,
        largest_batch: int | None = None,
        evaluated: Sequence[IntVector] | None = None,
        device: str = "cpu",
        batched: bool = False,
    ) -> None:
        self.name = name
        wanted = usable_device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initial-point") & 0x7FFFFFFFFFFFFFFF)
            made = module().float()
        self._model = FlatModule(name, made, loss, rows_at_once=rows_at_once)
        self._clients: OwnExamples | SharedExamples = (
            clients if isinstance(clients, SharedExamples) else OwnExamples.copied(name, clients)
        )
        self._test = None if test is None else (owned(test[0]), owned(test[1]))
        self._rows_at_once = rows_at_once
        self._largest_batch = largest_batch
        self._batched = batched
        self._rows_in_a_group = rows_at_once or _ROWS_IN_A_GROUP
        self._check_sizes()
        self._evaluated = None if evaluated is None else self._checked_rows(evaluated)
        self._x0 = starting_point(x0, self._model.flat())
        self._buffers0 = self._model.buffers.flat()
        self._refuse_single_rows()
        self._refuse_randomness()
        if wanted.type != "cpu":  # until here all was made and checked on the CPU
            self._move(wanted)

    @cached_property
    def dimension(self) -> int:
        """d: number of trainable parameters."""
        return self._model.layout.dimension

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32."""
        return np.dtype(np.float32)

    @cached_property
    def num_examples(self) -> tuple[int, ...]:
        """Examples of each client."""
        return self._clients.sizes

    def initial_point(self) -> Vector:
        """x^0, (d,)."""
        return self._x0.copy()

    def initial_buffers(self) -> Vector:
        """The module's own, (b,)."""
        return self._buffers0.copy()

    def named_arrays(self, x: Vector, buffers: Vector) -> dict[str, Vector]:
        """Return the model by its parts' names."""
        return {**self._model.layout.unflatten(x), **self._model.buffers.named(buffers)}

    def local(
        self, client: int, x: Vector, *, rows: IntVector | None = None, buffers: Vector
    ) -> LocalResult:
        """One forward and backward pass in training mode; see `Problem.local`.

        An `x` that is read-only is loaded once, however many calls in a row share it.

        Raises
        ------
        ConfigError
            If `buffers` has the wrong shape, or the rows are more than `largest_batch` allows.
        """
        count = self.num_examples[client] if rows is None else len(rows)
        if self._buffers0.size and self._largest_batch and count > self._largest_batch:
            raise ConfigError(
                f"{self.name}: a pass over {count} rows of client {client} at once, because batch "
                f"norm cannot be split, needs too much memory; at most {self._largest_batch}: set "
                "local-batch-size (or the key of the batch in question), or use group norm"
            )
        inputs, targets = self._examples(client, rows)
        if targets.shape[0] == 0:
            return LocalResult(0.0, self._zeros(), buffers.copy())
        with OneThread():
            self._model.load(x, buffers, training=True)
            # Batch norm means the statistics of all rows given: they stay in one pass.
            differentiate = (
                self._model.differentiate
                if self._buffers0.size
                else self._model.differentiate_in_parts
            )
            loss, gradient = differentiate(inputs, targets)
            return LocalResult(loss, gradient, self._model.buffers.flat())

    def local_many(
        self, clients: Sequence[int], x: Vector, *, rows: Sequence[IntVector | None]
    ) -> list[LocalResult]:
        """`local` of each client, those with equally many rows in one pass; without buffers.

        Nothing is padded, so any loss will do; at most `rows_at_once` rows are in a pass.

        Raises
        ------
        ConfigError
            If torch cannot vectorize the module.
        """
        sizes = [
            self.num_examples[client] if chosen is None else chosen.size
            for client, chosen in zip(clients, rows, strict=True)
        ]
        results: dict[int, LocalResult] = {}
        with OneThread():
            self._model.load(x, self._buffers0, training=True)
            for places in alike(sizes, limit=self._rows_in_a_group):
                losses, gradients = self._model.differentiate_each(
                    *stacked([self._examples(clients[place], rows[place]) for place in places])
                )
                for place, loss, gradient in zip(places, losses, gradients, strict=True):
                    # A copy: a view would keep the gradients of all alive.
                    results[place] = LocalResult(loss, gradient.copy(), NO_BUFFERS)
        return [
            results[place] if size else LocalResult(0.0, self._zeros(), NO_BUFFERS)
            for place, size in enumerate(sizes)
        ]

    def _examples(self, client: int, rows: IntVector | None) -> Examples:
        inputs, targets = self._clients[client]
        if rows is None:
            return inputs, targets
        chosen = torch.tensor(rows, device=inputs.device)
        return inputs.index_select(0, chosen), targets.index_select(0, chosen)

    def evaluate(self, x: Vector, *, weights: Vector, buffers: Vector) -> Evaluation:
        """f, its exact gradient's norm and the test accuracy, in evaluation mode."""
        loss, gradient = 0.0, np.zeros(self.dimension)
        with OneThread():
            self._model.load(x, buffers, training=False)
            for clients in self._evaluated_together():
                f, gradients = self._model.differentiate_each(
                    *stacked([self._rows_to_evaluate(client) for client in clients])
                )
                for client, f_i, gradient_i in zip(clients, f, gradients, strict=True):
                    loss += float(weights[client]) * f_i
                    gradient += weights[client] * gradient_i.astype(np.float64)
            accuracy = None if self._test is None else self._model.accuracy(self._test)
            return Evaluation(loss, norm(gradient), accuracy)

    def evaluate_client(self, client: int, x: Vector, *, buffers: Vector) -> LocalResult:
        """f_i and its gradient in evaluation mode, on the rows that `evaluate` uses."""
        inputs, targets = self._rows_to_evaluate(client)
        if len(targets) == 0:
            return LocalResult(0.0, self._zeros(), buffers.copy())
        with OneThread():
            self._model.load(x, buffers, training=False)
            loss, gradient = self._model.differentiate_in_parts(inputs, targets)
            return LocalResult(loss, gradient, buffers.copy())

    def labels(self, client: int) -> IntVector | None:
        """(m_i,) int64 classes of the client's examples; None where targets are no classes."""
        targets = self._clients[client][1]
        if targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
            return None
        return np.asarray(targets.cpu().numpy(), dtype=np.int64)

    def _evaluated_together(self) -> Iterable[list[int]]:
        """Clients that have rows, in groups for one pass."""
        if not self._batched:
            return ([client] for client, size in enumerate(self.num_examples) if size)
        rows = self._evaluated
        sizes = self.num_examples if rows is None else [len(part) for part in rows]
        return alike(sizes, limit=self._rows_in_a_group)

    def _zeros(self) -> Vector:
        return np.zeros(self.dimension, dtype=np.float32)

    def _rows_to_evaluate(self, client: int) -> Examples:
        inputs, targets = self._clients[client]
        if self._evaluated is None:
            return inputs, targets
        rows = self._evaluated[client]
        return inputs[rows], targets[rows]

    def _check_sizes(self) -> None:
        if not any(self.num_examples):
            raise ConfigError(f"{self.name}: no client has examples; give data to at least one")
        if self._rows_at_once is not None and self._rows_at_once < 1:
            raise ConfigError(
                f"{self.name}: rows_at_once must be at least 1, got {self._rows_at_once}; "
                "use None for all rows in one pass"
            )

    def _move(self, device: torch.device) -> None:
        hold_cudnn_to_its_bits()
        self._clients = self._clients.to(device)
        if self._test is not None:
            self._test = (self._test[0].to(device), self._test[1].to(device))
        self._model.move(device)

    def _checked_rows(self, evaluated: Sequence[IntVector]) -> list[Tensor]:
        sizes = self.num_examples
        if len(evaluated) != len(sizes):
            raise ConfigError(
                f"{self.name}: evaluated has rows for {len(evaluated)} clients, there are "
                f"{len(sizes)}; give one array for each"
            )
        for client, (rows, size) in enumerate(zip(evaluated, sizes, strict=True)):
            if (len(rows) == 0) != (size == 0) or (size and not 0 <= min(rows) <= max(rows) < size):
                raise ConfigError(
                    f"{self.name}: evaluated of client {client} must be rows from 0 to "
                    f"{size - 1}, at least one, got {rows[:5]}..."
                )
        return [torch.tensor(rows) for rows in evaluated]

    def _refuse_single_rows(self) -> None:
        """Batch normalization cannot train on one row: say so before the run."""
        alone = [client for client, size in enumerate(self.num_examples) if size == 1]
        if not alone or not self._buffers0.size:
            return
        try:
            self.local(alone[0], self._x0, buffers=self._buffers0)
        except ValueError as error:
            raise ConfigError(
                f"{self.name}: client {alone[0]} has a single row, and the module cannot train on "
                f"it ({error}); raise min-partition-size, or use group normalization"
            ) from None

    def _refuse_randomness(self) -> None:
        """Run one training pass and see whether it moves torch's generator."""
        client = int(np.argmax(self.num_examples))
        # A client too large for one pass shows it on a few rows.
        limits = [self._rows_at_once or 32, self._largest_batch or 32]
        few = min(self.num_examples[client], 32, *limits)
        rows = None if self._rows_at_once is None else np.arange(few)
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            self.local(client, self._x0, rows=rows, buffers=self._buffers0)
            if not torch.equal(before, torch.get_rng_state()):
                raise ConfigError(
                    f"{self.name}: the module draws random numbers while it trains (dropout?), but "
                    "the same configuration must give the same bits on every engine; "
                    "remove the layer or set its p=0"
                )
