"""Which client holds which examples: flwr-datasets' partitioners on an in-memory index."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import numpy as np

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.randomness import stream, stream_seed
from fedef.shared_rows import SharedRows
from fedef.vectors import IntVector

_WAY_OUT = {
    "dirichlet": "use a larger dirichlet-alpha, fewer clients or a smaller min-partition-size",
    "pathological": "some class has fewer examples than clients that need it: use fewer clients "
    "or fewer classes-per-client",
}


def partition(
    labels: IntVector,
    *,
    num_clients: int,
    partitioner: str,
    seed: int,
    dirichlet_alpha: float = 0.1,
    classes_per_client: int = 2,
    min_partition_size: int = 1,
    owners: IntVector | None = None,
) -> tuple[IntVector, ...]:
    """Deal the examples 0..N-1 to the clients; no example goes to two.

    A pure function of its arguments. `iid`: near-equal shards of a permutation. `contiguous`:
    near-equal shards in the given order. `dirichlet`: each class is split by proportions drawn from
    Dir(dirichlet_alpha). `pathological`: `classes_per_client` classes each; the first class of
    client i is i modulo the number of classes and the others are drawn, but with fewer clients than
    classes client i holds the classes i, i+1, ..., because drawn ones would leave some class to
    nobody. `natural`: an owner's examples stay together; fewer clients than owners get near-equal
    numbers of neighbouring owners. `natural-largest`: one owner each, those with most examples (of
    two equal ones the lower), in the order of the owners; alone here, examples are left out.

    Parameters
    ----------
    labels
        (N,) int64: the class of each example.
    num_clients
        n.
    partitioner
        iid, contiguous, dirichlet, pathological, natural or natural-largest.
    seed
        The run's seed.
    dirichlet_alpha
        Of `dirichlet`: small means few classes per client.
    classes_per_client
        Of `pathological`.
    min_partition_size
        Examples that each client has at least; 0 allows empty clients.
    owners
        (N,) int64: the natural client of each example; None: the data know none.

    Returns
    -------
    tuple of (m_i,) int64
        The examples of each client, ascending.

    Raises
    ------
    ConfigError
        If the settings cannot be met.
    """
    _require_enough(len(labels), num_clients, min_partition_size)
    if partitioner == "pathological":
        _require_all_classes_dealt(len(np.unique(labels)), num_clients, classes_per_client)

    datasets = _dealing_library()
    datasets.disable_progress_bars()
    order, owner = np.arange(len(labels)), labels
    if partitioner.startswith("natural"):
        order, owner = _natural(owners, num_clients, partitioner)
    if partitioner == "iid":
        order = stream(seed, "partition").permutation(len(labels))
    dealer = _dealer(
        partitioner,
        num_clients=num_clients,
        num_examples=len(labels),
        num_classes=len(np.unique(labels)),
        seed=stream_seed(seed, "partition") & 0x7FFFFFFF,
        dirichlet_alpha=dirichlet_alpha,
        classes_per_client=classes_per_client,
        min_partition_size=min_partition_size,
    )
    columns = {"idx": order, "label": labels[order], "owner": owner}
    dealer.dataset = datasets.Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # a progress bar of its own
            warnings.simplefilter("ignore")  # a retry of the Dirichlet draw; its failure is raised
            shards = [dealer.load_partition(client) for client in range(num_clients)]
    except ValueError as error:
        raise ConfigError(
            f"partition: partitioner={partitioner} found no way to deal {len(labels)} examples "
            f"to num-clients={num_clients} with dirichlet-alpha={dirichlet_alpha}, "
            f"classes-per-client={classes_per_client}, min-partition-size={min_partition_size}; "
            f"{_WAY_OUT[partitioner]}"
        ) from error
    parts = tuple(
        np.sort(np.asarray(shard.with_format("numpy")["idx"][:], dtype=np.int64))
        for shard in shards
    )
    smallest = min(len(part) for part in parts)
    if smallest < min_partition_size:
        raise ConfigError(
            f"partition: partitioner={partitioner}, num-clients={num_clients} leaves a client with "
            f"{smallest} examples, min-partition-size is {min_partition_size}; "
            "use fewer clients or lower it"
        )
    return parts


def partition_for(
    config: Config, labels: IntVector, owners: IntVector | None = None
) -> Sequence[IntVector]:
    """`partition` with the settings of `config`, or the rows that clients share."""
    if config.partitioner == "shared":
        return SharedRows(
            labels,
            num_clients=config.num_clients,
            rows=config.client_examples,
            dirichlet_alpha=config.dirichlet_alpha,
            seed=config.seed,
        )
    return partition(
        labels,
        num_clients=config.num_clients,
        partitioner=config.partitioner,
        seed=config.seed,
        dirichlet_alpha=config.dirichlet_alpha,
        classes_per_client=config.classes_per_client,
        min_partition_size=config.min_partition_size,
        owners=owners,
    )


def _natural(
    owners: IntVector | None, num_clients: int, partitioner: str
) -> tuple[IntVector, IntVector]:
    """Examples that are dealt, and the client of each."""
    if owners is None:
        raise ConfigError(
            f"partition: partitioner={partitioner} needs data that know their clients (countries "
            "of problem=dro, client-column of hf:, client_train of an npz file); use another one"
        )
    found, sizes = np.unique(owners, return_counts=True)
    if num_clients > len(found):
        raise ConfigError(
            f"partition: num-clients={num_clients} is more than the {len(found)} natural clients "
            f"of the data; use at most {len(found)}, or another partitioner"
        )
    client = np.full(int(found[-1]) + 1, -1, dtype=np.int64)
    if partitioner == "natural":
        for number, group in enumerate(np.array_split(found, num_clients)):
            client[group] = number
    else:
        largest = np.argsort(-sizes, kind="stable")[:num_clients]
        client[np.sort(found[largest])] = np.arange(num_clients)
    order = np.flatnonzero(client[owners] >= 0)
    return order, client[owners[order]]


def _dealing_library() -> Any:
    """Hugging Face's datasets; imported late: it takes two seconds, and devices are without it."""
    try:
        import datasets
        import flwr_datasets  # noqa: F401 - `_dealer` needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"partitioner: dealing data to clients needs {error.name}, not installed here: "
            "pip install 'fedef[sims]', or give each node data of its own"
        ) from None
    return datasets


def _dealer(
    partitioner: str,
    *,
    num_clients: int,
    num_examples: int,
    num_classes: int,
    seed: int,
    dirichlet_alpha: float,
    classes_per_client: int,
    min_partition_size: int,
) -> Any:
    from flwr_datasets.partitioner import (
        DirichletPartitioner,
        IidPartitioner,
        NaturalIdPartitioner,
        PathologicalPartitioner,
        SizePartitioner,
    )

    rows = {
        "iid": lambda: IidPartitioner(num_clients),
        "contiguous": lambda: SizePartitioner(_near_equal(num_examples, num_clients)),
        "dirichlet": lambda: DirichletPartitioner(
            num_clients,
            "label",
            alpha=dirichlet_alpha,
            min_partition_size=min_partition_size,
            seed=seed,
        ),
        "pathological": lambda: PathologicalPartitioner(
            num_clients,
            "label",
            classes_per_client,
            class_assignment_mode=(
                "first-deterministic" if num_clients >= num_classes else "deterministic"
            ),
            seed=seed,
        ),
        "natural": lambda: NaturalIdPartitioner("owner"),
        "natural-largest": lambda: NaturalIdPartitioner("owner"),
    }
    if partitioner not in rows:
        raise ConfigError(f"partition: unknown partitioner {partitioner!r}; one of {list(rows)}")
    return rows[partitioner]()


def _near_equal(num_examples: int, num_clients: int) -> list[int]:
    base, extra = divmod(num_examples, num_clients)
    return [base + (client < extra) for client in range(num_clients)]


def _require_enough(num_examples: int, num_clients: int, min_partition_size: int) -> None:
    needed = num_clients * max(1, min_partition_size)
    if needed > num_examples:
        raise ConfigError(
            f"partition: num-clients={num_clients} with min-partition-size={min_partition_size} "
            f"needs {needed} examples, the data has {num_examples}; use at most "
            f"{num_examples // max(1, min_partition_size)} clients or a smaller min-partition-size"
        )


def _require_all_classes_dealt(num_classes: int, num_clients: int, classes_per_client: int) -> None:
    if classes_per_client > num_classes:
        raise ConfigError(
            f"partition: classes-per-client={classes_per_client} is more than the {num_classes} "
            f"classes of the data; use at most {num_classes}"
        )
    if num_clients + classes_per_client - 1 < num_classes:
        raise ConfigError(
            f"partition: {num_clients} clients with classes-per-client={classes_per_client} leave "
            f"some of the {num_classes} classes to nobody; use at least "
            f"{num_classes - num_clients + 1} classes per client or "
            f"{num_classes - classes_per_client + 1} clients"
        )
