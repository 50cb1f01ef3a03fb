"""Where a client's state lives between two messages: on the node's disk, or in Flower's memory."""

from typing import Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from numpy.typing import NDArray

from fedef.client_store import ClientStore
from fedef.errors import ConfigError
from fedef.service import Service, absolute_folder
from fedef.state import ClientState

_RECORD = "fedef-client"
_STYPE = "fedef/raw"
_KEY = "state-dir"


class Store(Protocol):
    """Keeps a client's state from one message to the next."""

    def load(self) -> ClientState | None:
        """Return the state that was saved last; None at a client's first task."""

    def save(self, state: ClientState) -> None:
        """Keep the state; whoever returns has done so."""


class ContextStore:
    """Flower's own context: enough for the simulation, lost when a device restarts."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def load(self) -> ClientState | None:
        """See `load_state`."""
        return load_state(self._context)

    def save(self, state: ClientState) -> None:
        """See `save_state`."""
        save_state(self._context, state)


def store_of(context: Context, *, token: str, client: int) -> Store:
    """Where this client keeps its state in the run called `token`.

    The node's own config decides first, since it knows its disk, then the run config.

    Raises
    ------
    ConfigError
        If state-dir is not an absolute path.
    """
    folder = context.node_config.get(_KEY) or Service.from_run_config(context.run_config).state_dir
    if not folder:
        return ContextStore(context)
    if not isinstance(folder, str):
        raise ConfigError(f"{_KEY}: must be an absolute path, got {folder!r}")
    return ClientStore(absolute_folder(_KEY, folder), token=token, client=client)


def load_state(context: Context) -> ClientState | None:
    """Return the state that `save_state` left in the context; None at a client's first task."""
    if _RECORD not in context.state:
        return None
    record = context.state.array_records[_RECORD]
    return ClientState.from_arrays({name: _from_array(array) for name, array in record.items()})


def save_state(context: Context, state: ClientState) -> None:
    """Leave the state in the context; one assignment, so that it is there whole or not at all.

    Flower keeps a context in memory only.
    """
    arrays = {name: _to_array(array) for name, array in state.to_arrays().items()}
    context.state[_RECORD] = ArrayRecord(arrays)


def _to_array(array: NDArray[Any]) -> Array:
    shape = tuple(int(size) for size in array.shape)
    return Array(dtype=array.dtype.str, shape=shape, stype=_STYPE, data=array.tobytes())


def _from_array(array: Array) -> NDArray[Any]:
    return np.frombuffer(array.data, dtype=np.dtype(array.dtype)).reshape(array.shape)
