"""The engines by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.recorder import Line
from sims.inline_run import open_inline
from sims.run_loop import OnForecast, OnRound, OpenEngine, ignore, start_run

ENGINES = ("inline", "ray", "flower")

LOST_WORKER = ("replace", "stop")


def start(
    config: Config,
    out: Path,
    *,
    engine: str,
    on_round: OnRound = ignore,
    on_forecast: OnForecast = ignore,
    checkpoint_every: int = 50,
    **options: Any,
) -> Line:
    """Run a configuration on the engine of that name and return its summary.

    `options` are Ray's, see `opener`; the other arguments are those of `start_run`.

    Raises
    ------
    ConfigError
        If the engine is unknown, or an option, the configuration or the folder cannot be used.
    FedefError
        If the run failed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine: must be {', '.join(ENGINES[:-1])} or flower, got {engine!r}")
    open_engine = opener("inline" if engine == "flower" else engine, **options)
    if engine == "flower":
        from sims.flower_run import run_flower

        return run_flower(config, out, on_round=on_round)
    return start_run(
        config,
        out,
        open_engine=open_engine,
        name=engine,
        on_round=on_round,
        on_forecast=on_forecast,
        checkpoint_every=checkpoint_every,
        workers=local_workers(engine, options),
    )


def local_workers(engine: str, options: Mapping[str, Any]) -> int:
    """The most processes of the engine on this machine; 0: none, or on a cluster elsewhere."""
    if engine != "ray" or options.get("ray_address"):
        return 0
    from sims.ray_cluster import Resources

    cores = len(os.sched_getaffinity(0))
    room = Resources.parse(options.get("client_resources", "")).workers_on(cores)
    return options.get("workers") or min(cores, room)


def opener(
    engine: str,
    *,
    workers: int | None = None,
    ray_address: str = "",
    client_resources: str = "",
    lost_worker: str = "replace",
) -> OpenEngine:
    """Return what opens the engine `inline` or `ray`; the rest is of Ray's and must fit it.

    Raises
    ------
    ConfigError
        If the engine is unknown, or an option is wrong or not its.
    """
    if engine == "inline":
        given = {
            "workers": workers is not None,
            "ray-address": bool(ray_address),
            "client-resources": bool(client_resources),
            "lost-worker": lost_worker != "replace",
        }
        if any(given.values()):
            names = ", ".join(name for name, is_given in given.items() if is_given)
            raise ConfigError(f"{names}: only the ray engine has it; add --engine ray")
        return open_inline
    if engine != "ray":
        raise ConfigError(f"engine: must be inline or ray to go on with a run, got {engine!r}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers: must be at least 1, got {workers}; leave it out for all cores")
    if lost_worker not in LOST_WORKER:
        raise ConfigError(f"lost-worker: must be replace or stop, got {lost_worker!r}")
    from sims.ray_cluster import Resources
    from sims.ray_engine import RaySettings

    return RaySettings(
        workers=workers,
        address=ray_address,
        resources=Resources.parse(client_resources),
        recover=lost_worker == "replace",
    ).open
