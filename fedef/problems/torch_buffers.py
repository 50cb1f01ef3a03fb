"""A module's buffers as one flat vector."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedef.errors import ConfigError
from fedef.vectors import Layout, Vector

NO_BUFFERS: Vector = np.empty(0, dtype=np.float32)
"""Of a module that has none."""


class ModuleBuffers:
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
            return NO_BUFFERS
        current = [getattr(*places[0]).detach().reshape(-1) for places in self._floating]
        return np.asarray(torch.cat(current).cpu().numpy())


def _install(places: list[tuple[nn.Module, str]], tensor: Tensor) -> None:
    for owner, attribute in places:
        setattr(owner, attribute, tensor)
