"""Any torch module and loss as a problem in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.func
from numpy.typing import NDArray
from torch import Tensor, nn

from fedef.errors import ConfigError
from fedef.problems.base import Evaluation, LocalResult, Smoothness
from fedef.problems.files import starting_point
from fedef.randomness import stream_seed
from fedef.shared_rows import SharedRows, sizes_of
from fedef.vectors import IntVector, Layout, Vector, norm

Loss = Callable[[Tensor, Tensor], Tensor]
Examples = tuple[Tensor, Tensor]
_ROWS_IN_A_GROUP = 16384
_NO_BUFFERS: Vector = np.empty(0, dtype=np.float32)


class SharedExamples:
    """Examples of clients that share one set, taken from it whenever they are asked for."""

    def __init__(self, inputs: Tensor, targets: Tensor, rows: SharedRows) -> None:
        self._inputs, self._targets, self._rows = inputs, targets, rows
        self.sizes = sizes_of(rows)

    def __getitem__(self, client: int) -> Examples:
        rows = torch.from_numpy(self._rows[client]).to(self._inputs.device)
        # index_select copies whole rows, far faster than indexing bytes does.
        return self._inputs.index_select(0, rows), self._targets.index_select(0, rows)

    def to(self, device: torch.device) -> SharedExamples:
        """The same on another device."""
        return SharedExamples(self._inputs.to(device), self._targets.to(device), self._rows)


def examples_of(
    inputs: NDArray[Any], targets: NDArray[Any], parts: Sequence[IntVector]
) -> Sequence[Examples] | SharedExamples:
    """Each client's part of a set: its own, or drawn when it is asked for."""
    if isinstance(parts, SharedRows):
        return SharedExamples(_own(torch.tensor(inputs)), _own(torch.tensor(targets)), parts)
    return [(torch.from_numpy(inputs[part]), torch.from_numpy(targets[part])) for part in parts]


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
            self._module = module().float()
        self._loss = loss
        self._clients = (
            clients
            if isinstance(clients, SharedExamples)
            else [(_own(inputs), _own(targets)) for inputs, targets in clients]
        )
        self._test = None if test is None else (_own(test[0]), _own(test[1]))
        named = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        self._parameters = list(named.values())
        self._layout = Layout.of({n: p.detach().numpy() for n, p in named.items()})
        self._buffers = _Buffers(self._module)
        self._loaded: Vector | None = None
        self._rows_at_once = rows_at_once
        self._largest_batch = largest_batch
        self._batched = batched
        self._check_sizes()
        self._evaluated = None if evaluated is None else self._checked_rows(evaluated)
        self._x0 = starting_point(
            x0, self._layout.flatten({n: p.detach().numpy() for n, p in named.items()}, np.float32)
        )
        self._buffers0 = self._buffers.flat()
        self._refuse_single_rows()
        self._refuse_randomness()
        if wanted.type != "cpu":
            self._move(wanted)

    @cached_property
    def dimension(self) -> int:
        """d: number of trainable parameters."""
        return self._layout.dimension

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32."""
        return np.dtype(np.float32)

    @cached_property
    def num_examples(self) -> tuple[int, ...]:
        """Examples of each client."""
        if isinstance(self._clients, SharedExamples):
            return self._clients.sizes
        return tuple(len(targets) for _, targets in self._clients)

    def initial_point(self) -> Vector:
        """x^0, (d,)."""
        return self._x0.copy()

    def initial_buffers(self) -> Vector:
        """The module's own, (b,)."""
        return self._buffers0.copy()

    def named_arrays(self, x: Vector, buffers: Vector) -> dict[str, Vector]:
        """Return the model by its parts' names."""
        return {**self._layout.unflatten(x), **self._buffers.named(buffers)}

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
        with _OneThread():
            self._load(x, buffers, training=True)
            # Batch norm means the statistics of all rows given: they stay in one pass.
            differentiate = (
                self._differentiate if self._buffers0.size else self._differentiate_in_parts
            )
            loss, gradient = differentiate(inputs, targets)
            return LocalResult(loss, gradient, self._buffers.flat())

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
        with _OneThread():
            self._load(x, self._buffers0, training=True)
            for places in self._grouped(sizes):
                losses, gradients = self._differentiate_each(
                    *_stacked([self._examples(clients[place], rows[place]) for place in places])
                )
                for place, loss, gradient in zip(places, losses, gradients, strict=True):
                    # A copy: a view would keep the gradients of all alive.
                    results[place] = LocalResult(loss, gradient.copy(), _NO_BUFFERS)
        return [
            results[place] if size else LocalResult(0.0, self._zeros(), _NO_BUFFERS)
            for place, size in enumerate(sizes)
        ]

    def _examples(self, client: int, rows: IntVector | None) -> Examples:
        inputs, targets = self._clients[client]
        if rows is None:
            return inputs, targets
        chosen = torch.tensor(rows, device=inputs.device)
        return inputs.index_select(0, chosen), targets.index_select(0, chosen)

    def _grouped(self, sizes: Sequence[int]) -> Iterator[list[int]]:
        """Places of equal sizes that go into one pass; those of size 0 are left out."""
        limit = self._rows_at_once or _ROWS_IN_A_GROUP
        alike: dict[int, list[int]] = {}
        for place, size in enumerate(sizes):
            alike.setdefault(size, []).append(place)
        for size, places in alike.items():
            if size:
                step = max(1, limit // size)
                yield from (places[i : i + step] for i in range(0, len(places), step))

    def _differentiate_each(
        self, inputs: Tensor, targets: Tensor
    ) -> tuple[list[float], NDArray[np.float32]]:
        """Losses (B,) and gradients (B, d) of B clients with m rows each; inputs (B, m, ...)."""
        if len(targets) == 1:
            loss, gradient = self._differentiate_in_parts(inputs[0], targets[0])
            return [loss], gradient[None]

        def value(parameters: dict[str, Tensor], of: Tensor, to: Tensor) -> Tensor:
            return self._loss(torch.func.functional_call(self._module, parameters, (of,)), to)

        named = dict(zip(self._layout.names, self._parameters, strict=True))
        try:
            each = torch.func.vmap(torch.func.grad_and_value(value), in_dims=(None, 0, 0))
            gradients, losses = each({n: p.detach() for n, p in named.items()}, inputs, targets)
        except RuntimeError as error:
            raise ConfigError(
                f"{self.name}: torch cannot compute the gradients of many clients in one pass "
                f"({str(error).splitlines()[0]}); set batched=false"
            ) from None
        flat = torch.cat([gradients[name].reshape(len(targets), -1) for name in named], dim=1)
        return losses.tolist(), np.asarray(flat.cpu().numpy())

    def evaluate(self, x: Vector, *, weights: Vector, buffers: Vector) -> Evaluation:
        """f, its exact gradient's norm and the test accuracy, in evaluation mode."""
        loss, gradient = 0.0, np.zeros(self.dimension)
        with _OneThread():
            self._load(x, buffers, training=False)
            for clients in self._evaluated_together():
                f, gradients = self._differentiate_each(
                    *_stacked([self._rows_to_evaluate(client) for client in clients])
                )
                for client, f_i, gradient_i in zip(clients, f, gradients, strict=True):
                    loss += float(weights[client]) * f_i
                    gradient += weights[client] * gradient_i.astype(np.float64)
            return Evaluation(loss, norm(gradient), self._test_accuracy())

    def evaluate_client(self, client: int, x: Vector, *, buffers: Vector) -> LocalResult:
        """f_i and its gradient in evaluation mode, on the rows that `evaluate` uses."""
        inputs, targets = self._rows_to_evaluate(client)
        if len(targets) == 0:
            return LocalResult(0.0, self._zeros(), buffers.copy())
        with _OneThread():
            self._load(x, buffers, training=False)
            loss, gradient = self._differentiate_in_parts(inputs, targets)
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
        return self._grouped(self.num_examples if rows is None else [len(part) for part in rows])

    def _zeros(self) -> Vector:
        return np.zeros(self.dimension, dtype=np.float32)

    def _rows_to_evaluate(self, client: int) -> Examples:
        inputs, targets = self._clients[client]
        if self._evaluated is None:
            return inputs, targets
        rows = self._evaluated[client]
        return inputs[rows], targets[rows]

    def _differentiate_in_parts(self, inputs: Tensor, targets: Tensor) -> tuple[float, Vector]:
        """`_differentiate`, `rows_at_once` rows at a time."""
        size = self._rows_at_once
        if size is None or len(targets) <= size:
            return self._differentiate(inputs, targets)
        loss, gradient = 0.0, np.zeros(self.dimension)
        for part, part_targets in zip(
            torch.split(inputs, size), torch.split(targets, size), strict=True
        ):
            share = len(part_targets) / len(targets)
            part_loss, part_gradient = self._differentiate(part, part_targets)
            loss += share * part_loss
            gradient += share * part_gradient.astype(np.float64)
        return loss, gradient.astype(np.float32)

    def _differentiate(self, inputs: Tensor, targets: Tensor) -> tuple[float, Vector]:
        loss = self._loss(self._module(inputs), targets)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        flat = np.empty(self.dimension, dtype=np.float32)
        for (start, stop), gradient in zip(self._layout.bounds, gradients, strict=True):
            flat[start:stop] = 0.0 if gradient is None else gradient.cpu().numpy().reshape(-1)
        return loss.item(), flat

    def _test_accuracy(self) -> float | None:
        if self._test is None:
            return None
        inputs, targets = self._test
        size = self._rows_at_once or max(1, len(targets))
        with torch.no_grad():
            answers = [self._module(part).argmax(dim=-1) for part in torch.split(inputs, size)]
            return float((torch.cat(answers) == targets).double().mean())

    def _load(self, x: Vector, buffers: Vector, *, training: bool) -> None:
        if self._module.training != training:
            self._module.train(training)
        self._buffers.load(buffers)
        if x is self._loaded and not x.flags.writeable:
            return
        # Forgotten first: a load that fails halfway must not be taken for the old one.
        self._loaded = None
        arrays = self._layout.unflatten(x)
        for parameter, array in zip(self._parameters, arrays.values(), strict=True):
            parameter.detach().copy_(torch.tensor(array))
        self._loaded = x if _is_constant(x) else None

    def _move(self, device: torch.device) -> None:
        """Have data and module on `device`; until here all was made and checked on the CPU."""
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        if isinstance(self._clients, SharedExamples):
            self._clients = self._clients.to(device)
        else:
            self._clients = [(x.to(device), y.to(device)) for x, y in self._clients]
        if self._test is not None:
            self._test = (self._test[0].to(device), self._test[1].to(device))
        self._module.to(device)
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        self._buffers.device = device
        self._loaded = None

    def _check_sizes(self) -> None:
        if self.dimension == 0:
            raise ConfigError(
                f"{self.name}: the module has no trainable parameter; "
                "set requires_grad on what is to be trained"
            )
        own = () if isinstance(self._clients, SharedExamples) else self._clients
        for client, (inputs, targets) in enumerate(own):
            if len(inputs) != len(targets):
                raise ConfigError(
                    f"{self.name}: client {client} has {len(inputs)} inputs and {len(targets)} "
                    "targets; each input needs one target"
                )
        if not any(self.num_examples):
            raise ConfigError(f"{self.name}: no client has examples; give data to at least one")
        if self._rows_at_once is not None and self._rows_at_once < 1:
            raise ConfigError(
                f"{self.name}: rows_at_once must be at least 1, got {self._rows_at_once}; "
                "use None for all rows in one pass"
            )

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


class _Buffers:
    """A module's buffers: floating-point ones as one flat vector, the others reset at each load."""

    def __init__(self, module: nn.Module) -> None:
        self.device = torch.device("cpu")
        owners = dict(module.named_modules())
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        tensors: dict[int, Tensor] = {}
        names: dict[int, str] = {}
        for path, tensor in module.named_buffers(remove_duplicate=False):
            owner, _, attribute = path.rpartition(".")
            places.setdefault(id(tensor), []).append((owners[owner], attribute))
            tensors[id(tensor)] = tensor
            names.setdefault(id(tensor), path)
        travels = {key: tensor.is_floating_point() for key, tensor in tensors.items()}
        self._floating = [places[key] for key in tensors if travels[key]]
        self._shapes = [tensors[key].shape for key in tensors if travels[key]]
        self._sizes = [shape.numel() for shape in self._shapes]
        self._size = sum(self._sizes)
        self._names = [names[key] for key in tensors if travels[key]]
        self._fixed = [(places[key], tensors[key].clone()) for key in tensors if not travels[key]]

    def load(self, flat: Vector) -> None:
        """Install fresh tensors, so that neither in-place updates nor new ones reach `flat`."""
        if flat.shape != (self._size,):
            raise ConfigError(
                f"buffers must have shape ({self._size},), got {flat.shape}; "
                "start from initial_buffers()"
            )
        if self._floating:
            whole = torch.tensor(flat, dtype=torch.float32, device=self.device)
            fresh = torch.split(whole, self._sizes)
            for places, part, shape in zip(self._floating, fresh, self._shapes, strict=True):
                _install(places, part.view(shape))
        for places, first in self._fixed:
            _install(places, first.to(self.device, copy=True))

    def named(self, flat: Vector) -> dict[str, Vector]:
        """Views into `flat` by the buffers' names."""
        shapes = tuple(tuple(shape) for shape in self._shapes)
        return Layout(tuple(self._names), shapes).unflatten(flat)

    def flat(self) -> Vector:
        """(b,) float32, a copy."""
        if not self._floating:
            return _NO_BUFFERS
        current = [getattr(*places[0]).detach().reshape(-1) for places in self._floating]
        return np.asarray(torch.cat(current).cpu().numpy())


def usable_device(name: str) -> torch.device:
    """The device called `name`: cpu, or cuda where there is one.

    Raises
    ------
    ConfigError
        If torch sees no such device.
    """
    if name != "cpu" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        raise ConfigError(
            f"device: got {name!r}, but torch {torch.__version__}, built for {build}, sees none; "
            "set device=cpu, or install a build of torch and a driver for your card"
        )
    return torch.device(name)


def _stacked(examples: list[Examples]) -> Examples:
    inputs, targets = zip(*examples, strict=True)
    if len(examples) == 1:  # as it lies: a copy might be aligned otherwise
        return inputs[0][None], targets[0][None]
    return torch.stack(inputs), torch.stack(targets)


def _install(places: list[tuple[nn.Module, str]], tensor: Tensor) -> None:
    for owner, attribute in places:
        setattr(owner, attribute, tensor)


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy in torch's memory; floating-point values in float32."""
    kept = tensor.detach().to(torch.float32) if tensor.is_floating_point() else tensor
    return kept.clone(memory_format=torch.contiguous_format)


def _is_constant(x: Vector) -> bool:
    """Whether nobody can change `x`: it is read-only and no view of a writable array."""
    base = x.base
    return not x.flags.writeable and not (isinstance(base, np.ndarray) and base.flags.writeable)


class _OneThread:
    """Torch on one thread inside the block; a class, since a generator costs more per step."""

    def __enter__(self) -> None:
        # Set even where it reads 1: that is OpenMP's number, MKL keeps its own until it is told.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self._threads)
