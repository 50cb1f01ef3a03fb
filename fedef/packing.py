"""Many small states as a few long arrays, so that a file of many clients has few names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedef.errors import ConfigError
from fedef.state import Arrays


def packed(states: Mapping[int, Arrays]) -> Arrays:
    """One array for each field: those of all clients that have it, end to end.

    Parameters
    ----------
    states
        Of each client, named 1-d arrays; those of one name have one dtype.

    Returns
    -------
    dict
        For each field its ``/values``, with who has how many of them in ``/clients`` and
        ``/sizes``. A pure function of the states, whatever their order.
    """
    arrays: Arrays = {"clients": np.array(sorted(states), dtype=np.int64)}
    for name in sorted({name for state in states.values() for name in state}):
        owners = [client for client in sorted(states) if name in states[client]]
        parts = [states[client][name] for client in owners]
        arrays[f"{name}/clients"] = np.array(owners, dtype=np.int64)
        arrays[f"{name}/sizes"] = np.array([part.size for part in parts], dtype=np.int64)
        arrays[f"{name}/values"] = np.concatenate(parts, casting="no", dtype=parts[0].dtype)
    return arrays


def unpacked(arrays: Arrays) -> dict[int, Arrays]:
    """Inverse of `packed`; each array is a copy that keeps no other alive.

    Raises
    ------
    ConfigError
        If the arrays are not what `packed` makes.
    """
    try:
        states: dict[int, Arrays] = {client: {} for client in arrays["clients"].tolist()}
        for key in arrays:
            name, _, kind = key.rpartition("/")
            if kind == "values":
                parts = np.split(arrays[key], np.cumsum(arrays[f"{name}/sizes"])[:-1])
                for client, part in zip(arrays[f"{name}/clients"].tolist(), parts, strict=True):
                    states[client][name] = part.copy()
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"clients' states: {error!r} is missing or malformed; they were not written by fedef, "
            "or by another version: start the run again"
        ) from None
    return states
