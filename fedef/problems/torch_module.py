"""A torch module and its loss as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.func
from numpy.typing import NDArray
from torch import Tensor, nn

from fedef.errors import ConfigError
from fedef.problems.torch_buffers import ModuleBuffers
from fedef.problems.torch_examples import Examples
from fedef.vectors import Layout, Vector

Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of (outputs, targets), a scalar."""


KEPT_ENTRIES = 2**24
"""Of many clients' gradients: up to 64 MiB the memory for them is kept for the next call."""


class FlatModule:
    """Loss and gradient of the module at the x and buffers that were loaded last.

    Parameters
    ----------
    name
        The problem's, for messages.
    module
        Working memory from now on: every load overwrites its parameters and buffers.
    loss
        Of its outputs.
    rows_at_once
        Rows of one pass of what goes over its rows in parts; None: all.

    Raises
    ------
    ConfigError
        If the module has no trainable parameter.
    """

    def __init__(
        self, name: str, module: nn.Module, loss: Loss, *, rows_at_once: int | None
    ) -> None:
        self._name, self.module, self.loss = name, module, loss
        self._rows_at_once = rows_at_once
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._parameters = list(named.values())
        self.layout = Layout.of({n: p.detach().numpy() for n, p in named.items()})
        if self.layout.dimension == 0:
            raise ConfigError(
                f"{name}: the module has no trainable parameter; "
                "set requires_grad on what is to be trained"
            )
        self.buffers = ModuleBuffers(module)
        self._loaded: Vector | None = None
        self._gradients = np.empty((0, self.layout.dimension), dtype=np.float32)

    def flat(self) -> Vector:
        """(d,) float32: the parameters, a copy, while they are on the CPU."""
        arrays = [parameter.detach().numpy() for parameter in self._parameters]
        return self.layout.flatten(dict(zip(self.layout.names, arrays, strict=True)), np.float32)

    def move(self, device: torch.device) -> None:
        """Have the module on another device."""
        self.module.to(device)
        self._parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.buffers.device = device
        self._loaded = None

    def load(self, x: Vector, buffers: Vector, *, training: bool) -> None:
        """Have these parameters and buffers in the module, and its mode.

        An `x` that is read-only is loaded once, however many loads in a row share it.

        Raises
        ------
        ConfigError
            If `x` or `buffers` has the wrong shape.
        """
        if self.module.training != training:
            self.module.train(training)
        self.buffers.load(buffers)
        if x is self._loaded and not x.flags.writeable:
            return
        # Forgotten first: a load that fails halfway must not be taken for the old one.
        self._loaded = None
        arrays = self.layout.unflatten(x)
        for parameter, array in zip(self._parameters, arrays.values(), strict=True):
            parameter.detach().copy_(torch.tensor(array))
        self._loaded = x if _is_constant(x) else None

    def differentiate(self, inputs: Tensor, targets: Tensor) -> tuple[float, Vector]:
        """Loss and gradient (d,) in one pass."""
        loss = self.loss(self.module(inputs), targets)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        flat = np.empty(self.layout.dimension, dtype=np.float32)
        for (start, stop), gradient in zip(self.layout.bounds, gradients, strict=True):
            flat[start:stop] = 0.0 if gradient is None else gradient.cpu().numpy().reshape(-1)
        return loss.item(), flat

    def differentiate_in_parts(self, inputs: Tensor, targets: Tensor) -> tuple[float, Vector]:
        """`differentiate`, `rows_at_once` rows at a time."""
        size = self._rows_at_once
        if size is None or len(targets) <= size:
            return self.differentiate(inputs, targets)
        loss, gradient = 0.0, np.zeros(self.layout.dimension)
        for part, part_targets in zip(
            torch.split(inputs, size), torch.split(targets, size), strict=True
        ):
            share = len(part_targets) / len(targets)
            part_loss, part_gradient = self.differentiate(part, part_targets)
            loss += share * part_loss
            gradient += share * part_gradient.astype(np.float64)
        return loss, gradient.astype(np.float32)

    def differentiate_each(
        self, inputs: Tensor, targets: Tensor
    ) -> tuple[list[float], NDArray[np.float32]]:
        """Losses (B,) and gradients (B, d) of B clients with m rows each; inputs (B, m, ...).

        The gradients are there until the next call: fresh memory would take most of the time.

        Raises
        ------
        ConfigError
            If torch cannot vectorize the module.
        """
        if len(targets) == 1:
            loss, gradient = self.differentiate_in_parts(inputs[0], targets[0])
            return [loss], gradient[None]

        def value(parameters: dict[str, Tensor], of: Tensor, to: Tensor) -> Tensor:
            return self.loss(torch.func.functional_call(self.module, parameters, (of,)), to)

        named = dict(zip(self.layout.names, self._parameters, strict=True))
        try:
            each = torch.func.vmap(torch.func.grad_and_value(value), in_dims=(None, 0, 0))
            gradients, losses = each({n: p.detach() for n, p in named.items()}, inputs, targets)
        except RuntimeError as error:
            raise ConfigError(
                f"{self._name}: torch cannot compute the gradients of many clients in one pass "
                f"({str(error).splitlines()[0]}); set batched=false"
            ) from None
        flat = self._room(len(targets))
        for (start, stop), name in zip(self.layout.bounds, named, strict=True):
            flat[:, start:stop] = gradients[name].reshape(len(targets), -1).cpu().numpy()
        return losses.tolist(), flat

    def _room(self, count: int) -> NDArray[np.float32]:
        """(count, d) to write into, the same memory each time unless it is much."""
        if count <= len(self._gradients):
            return self._gradients[:count]
        room = np.empty((count, self.layout.dimension), dtype=np.float32)
        if room.size <= KEPT_ENTRIES:
            self._gradients = room
        return room

    def accuracy(self, examples: Examples) -> float:
        """Share of the examples whose class is that of the largest output."""
        inputs, targets = examples
        size = self._rows_at_once or max(1, len(targets))
        with torch.no_grad():
            answers = [self.module(part).argmax(dim=-1) for part in torch.split(inputs, size)]
            return float((torch.cat(answers) == targets).double().mean())


def _is_constant(x: Vector) -> bool:
    """Whether nobody can change `x`: it is read-only and no view of a writable array."""
    base = x.base
    return not x.flags.writeable and not (isinstance(base, np.ndarray) and base.flags.writeable)
