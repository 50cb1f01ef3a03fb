"""Where a client's state lives between two messages: here, in Flower's own context."""

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from numpy.typing import NDArray

from fedef.state import ClientState

_RECORD = "fedef-client"
_STYPE = "fedef/raw"


def load_state(context: Context) -> ClientState | None:
    """Return the state that `save_state` left in the context; None at a client's first task."""
    if _RECORD not in context.state:
        return None
    record = context.state.array_records[_RECORD]
    return ClientState.from_arrays({name: _from_array(array) for name, array in record.items()})


def save_state(context: Context, state: ClientState) -> None:
    """Leave the state in the context; one assignment, so that it is there whole or not at all.

    Flower keeps a context in memory only: in the simulation that is enough, on a device it does
    not survive a restart.
    """
    arrays = {name: _to_array(array) for name, array in state.to_arrays().items()}
    context.state[_RECORD] = ArrayRecord(arrays)


def _to_array(array: NDArray[Any]) -> Array:
    shape = tuple(int(size) for size in array.shape)
    return Array(dtype=array.dtype.str, shape=shape, stype=_STYPE, data=array.tobytes())


def _from_array(array: Array) -> NDArray[Any]:
    return np.frombuffer(array.data, dtype=np.dtype(array.dtype)).reshape(array.shape)
