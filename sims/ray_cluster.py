"""A Ray cluster to run on: one of our own for the run, or one that is there already."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import ray
from ray._private import ray_constants

from fedef.errors import ConfigError, FedefError
from sims.processes import HOME_VARIABLE, temporary_home
from sims.ray_tuning import TUNABLES, TUNED

ANSWER_SECONDS = 10.0
_CLOSE = 1e-6
_PLENTY = 10**6
_FOR_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # GPUs stay visible to work that reserves none
}


@dataclass(frozen=True)
class Resources:
    """What Ray reserves for one worker."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Resources:
        """Read ``num_cpus=1,num_gpus=0.5``; what is left out keeps its default.

        Raises
        ------
        ConfigError
            If a name is unknown or a number is not one that Ray reserves.
        """
        values = {"num_cpus": cls.num_cpus, "num_gpus": cls.num_gpus}
        for part in filter(None, text.replace(" ", "").split(",")):
            name, _, number = part.partition("=")
            name = name.replace("-", "_")
            try:
                amount = float(number)
            except ValueError:
                amount = -1.0
            if name not in values or not 0 <= amount < 1e6:
                raise ConfigError(
                    f"client-resources: got {part!r}; allowed are num_cpus=NUMBER and "
                    "num_gpus=NUMBER, separated by a comma, e.g. num_cpus=1,num_gpus=0.5"
                )
            values[name] = amount
        return cls(**values)

    def workers_on(self, cpus: float, gpus: float = inf) -> int:
        """How many workers have room there."""
        return min(_times(cpus, self.num_cpus), _times(gpus, self.num_gpus))


@contextmanager
def cluster(address: str, resources: Resources, workers: int | None) -> Iterator[int]:
    """Connect to Ray and yield the number of workers, by default one for each core.

    Parameters
    ----------
    address
        ``host:port`` or ``auto`` for a cluster that was started by ``ray start``; empty: a
        cluster of our own, which ends with the block. Where this process is connected already
        (a notebook, a test), that connection is used and left open.
    resources
        Of one worker.
    workers
        How many are wanted; None: as many as fit.

    Raises
    ------
    ConfigError
        If nothing answers at the address, or the cluster is too small.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers: must be at least 1, got {workers}")
    if ray.is_initialized():
        yield _fitting(resources, workers)
    elif address:
        with _joined(address):
            yield _fitting(resources, workers)
    else:
        cores = len(os.sched_getaffinity(0))
        room = max(cores, round((workers or 0) * resources.num_cpus + 0.5))
        with own_ray(room, _system_config=TUNED):
            yield _fitting(resources, workers)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """A cluster that was started by others and stays."""
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"ray-address: no Ray cluster at {address!r} ({reason}); give host:port of one that "
            "'ray start --head --port=6379' started, or auto on one of its hosts"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def own_ray(num_cpus: int, **options: Any) -> Iterator[None]:
    """A Ray of our own, on the loopback: Ray asks nobody for a password.

    Its files are below a temporary home, which goes with it, after SIGTERM too. `options` are
    further ones of ``ray.init``.

    Raises
    ------
    FedefError
        If Ray does not start.
    """
    tunables = ":".join(filter(None, (TUNABLES, os.environ.get("GLIBC_TUNABLES"))))
    own = _FOR_RAY | {"GLIBC_TUNABLES": tunables}  # the last word is the user's
    with temporary_home() as home, _environment(own | {HOME_VARIABLE: str(home)}):
        try:
            try:
                with _loopback():
                    ray.init(
                        address="local",
                        num_cpus=num_cpus,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        _temp_dir=str(home / "ray"),
                        **options,
                    )
            except Exception as error:  # Ray raises the bare class, too
                raise FedefError(
                    f"Ray did not start ({str(error).strip().partition(chr(10))[0]}); try again, "
                    "or do without: --engine inline, sweep --workers 0; the result is the same"
                ) from None
            yield
        finally:
            ray.shutdown()


@contextmanager
def _loopback() -> Iterator[None]:
    """Have Ray start on the loopback, as it does on systems where it knows no clusters.

    ``ray.init(_node_ip_address="127.0.0.1")`` does not: it takes an address of the network instead.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fitting(resources: Resources, workers: int | None) -> int:
    """The number of workers, all of which the cluster's nodes can hold at once."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's own
    room = sum(resources.workers_on(has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in nodes)
    wanted = workers or min(room, max(1, int(sum(has.get("CPU", 0.0) for has in nodes))))
    if not 1 <= wanted <= room:
        raise ConfigError(
            f"workers: {workers or 1} of them, {resources.num_cpus:g} CPU and "
            f"{resources.num_gpus:g} GPU each, do not fit into the cluster, which holds {room}; "
            "give fewer --workers, smaller --client-resources, or add nodes"
        )
    return wanted


def _times(has: float, needed: float) -> int:
    return int(min(has / needed, _PLENTY) + _CLOSE) if needed else _PLENTY
