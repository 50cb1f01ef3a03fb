"""The clients' data as tensors: each its own, or drawn from one set that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedef.errors import ConfigError
from fedef.shared_rows import SharedRows, sizes_of
from fedef.vectors import IntVector

Examples = tuple[Tensor, Tensor]
"""Inputs and targets, equally long."""


class OwnExamples:
    """Examples of clients that each have their own."""

    def __init__(self, clients: Sequence[Examples]) -> None:
        self._clients = clients
        self.sizes = tuple(len(targets) for _, targets in clients)

    def __getitem__(self, client: int) -> Examples:
        return self._clients[client]

    @classmethod
    def copied(cls, name: str, clients: Sequence[Examples]) -> OwnExamples:
        """Copies in torch's memory.

        Raises
        ------
        ConfigError
            If a client's inputs and targets differ in length; `name` is the problem's.
        """
        for client, (inputs, targets) in enumerate(clients):
            if len(inputs) != len(targets):
                raise ConfigError(
                    f"{name}: client {client} has {len(inputs)} inputs and {len(targets)} "
                    "targets; each input needs one target"
                )
        return cls([(owned(inputs), owned(targets)) for inputs, targets in clients])

    def to(self, device: torch.device) -> OwnExamples:
        """The same on another device."""
        return OwnExamples([(x.to(device), y.to(device)) for x, y in self._clients])


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
        return SharedExamples(owned(torch.tensor(inputs)), owned(torch.tensor(targets)), parts)
    return [(torch.from_numpy(inputs[part]), torch.from_numpy(targets[part])) for part in parts]


def owned(tensor: Tensor) -> Tensor:
    """A contiguous copy in torch's memory; floating-point values in float32."""
    kept = tensor.detach().to(torch.float32) if tensor.is_floating_point() else tensor
    return kept.clone(memory_format=torch.contiguous_format)


def alike(sizes: Sequence[int], *, limit: int) -> Iterator[list[int]]:
    """Places of equal sizes, at most `limit` rows at a time; those of size 0 are left out."""
    places_of: dict[int, list[int]] = {}
    for place, size in enumerate(sizes):
        places_of.setdefault(size, []).append(place)
    for size, places in places_of.items():
        if size:
            step = max(1, limit // size)
            yield from (places[i : i + step] for i in range(0, len(places), step))


def stacked(examples: Sequence[Examples]) -> Examples:
    """B clients' m rows each as (B, m, ...)."""
    inputs, targets = zip(*examples, strict=True)
    if len(examples) == 1:  # as it lies: a copy might be aligned otherwise
        return inputs[0][None], targets[0][None]
    return torch.stack(inputs), torch.stack(targets)
