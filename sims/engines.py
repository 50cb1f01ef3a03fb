"""The engines that keep a run's rounds in this process, by name."""

from __future__ import annotations

from fedef.errors import ConfigError
from sims.inline_run import open_inline
from sims.run_loop import OpenEngine

LOST_WORKER = ("replace", "stop")


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
        raise ConfigError(f"engine: must be inline or ray here, got {engine!r}")
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
