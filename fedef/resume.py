"""A run that goes on in its folder: what may change, and where its metrics are cut off."""

from __future__ import annotations

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import run_id
from fedef.run_folder import RunFolder


def longer(before: Config, num_rounds: int) -> Config:
    """Return the configuration with another number of rounds.

    Raises
    ------
    ConfigError
        If the schedule depends on it.
    """
    if num_rounds == before.num_rounds:
        return before
    if before.schedule in ("horizon", "theory"):
        raise ConfigError(
            f"num-rounds: schedule={before.schedule} fixes its steps for {before.num_rounds} "
            f"rounds, got {num_rounds}; resume without num-rounds, or start a new run"
        )
    return Config.from_flat({**before.to_flat(), "num-rounds": num_rounds})


def require_same_run(folder: RunFolder, before: Config, config: Config) -> None:
    """Check that a configuration is the folder's, but for the number of rounds.

    Raises
    ------
    ConfigError
        With the keys that differ.
    """
    if run_id(before) != run_id(config):
        old, new = before.to_flat(), config.to_flat()
        changed = [f"{k}={new[k]!r} (was {old[k]!r})" for k in new if new[k] != old[k]]
        raise ConfigError(
            f"resume: {str(folder.path)!r} holds a run of another configuration: "
            f"{', '.join(changed)}; give the same keys, or start a new run"
        )
    longer(before, config.num_rounds)


def cut_back(folder: RunFolder, config: Config, done: int) -> None:
    """Bring the folder to the end of round `done`, that of its checkpoint.

    Raises
    ------
    ConfigError
        If more rounds are done than wanted, or metrics are missing.
    """
    if done > config.num_rounds:
        raise ConfigError(
            f"num-rounds: {done} rounds are done, got {config.num_rounds}; "
            "resume with at least as many"
        )
    folder.discard_leftovers()
    folder.truncate_rounds(done)
    folder.remove_summary()
    folder.write_config(config)
