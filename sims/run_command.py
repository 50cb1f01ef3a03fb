"""``fedef run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedef.config import Config, read_toml
from fedef.errors import ConfigError
from fedef.recorder import Line
from sims.run_display import RunBar, show_summary, tell_forecast
from sims.settings import ConfigFile, DataDir, OutFolder, new_folder, read_settings
from sims.sinks import open_sinks

EXIT_DIVERGED, EXIT_INTERRUPTED = 3, 130


def run_command(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings, e.g. method=norm-ef21 k-fraction=0.01"
        ),
    ] = None,
    config: ConfigFile = None,
    engine: Annotated[
        str,
        typer.Option(
            help="inline: in this process; ray: on the cores of this machine or of a Ray cluster; "
            "flower: flwr run on Flower's Ray backend."
        ),
    ] = "inline",
    out: OutFolder = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this folder (inline, ray); num-rounds= may be raised."
        ),
    ] = None,
    checkpoint_every: Annotated[
        int,
        typer.Option(
            min=0,
            help="Rounds between checkpoints (inline, ray), which a lost worker's clients repeat; "
            "0: only at the end.",
        ),
    ] = 50,
    workers: Annotated[
        int | None, typer.Option(help="Processes of the ray engine. Default: one for each core.")
    ] = None,
    ray_address: Annotated[
        str, typer.Option(help="host:port of a Ray cluster, or auto. Default: one for this run.")
    ] = "",
    client_resources: Annotated[
        str, typer.Option(help="What each worker reserves, e.g. num_cpus=1,num_gpus=0.5 (ray).")
    ] = "",
    lost_worker: Annotated[
        str, typer.Option(help="replace: another takes its place; stop: the run ends (ray).")
    ] = "replace",
    data_dir: DataDir = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard or mlflow: write there too, in the run's folder."),
    ] = None,
) -> None:
    r"""Run one configuration and leave a folder with its metrics, summary and model.

    \b
    fedef run problem=digits-mlp method=norm-ef21 num-rounds=50
    fedef run problem=polynomial num-clients=1 method=norm-ef21 compressor=top-k k=1 schedule=theory
    fedef run --config my.toml seed=3 --engine flower --out runs/mine
    fedef run --resume runs/mine num-rounds=100
    fedef run --engine ray --workers 2 problem=digits-mlp num-clients=100 num-rounds=50

    'fedef keys' lists all settings. Ctrl-C ends the run after the round and keeps the folder valid.
    """
    given = read_settings(settings, data_dir)
    ray_options = {
        "workers": workers,
        "ray_address": ray_address,
        "client_resources": client_resources,
        "lost_worker": lost_worker,
    }
    if resume is not None:
        if set(given) - {"num-rounds"} or config or out:
            raise ConfigError(
                "resume: the run keeps its configuration and folder; only num-rounds= may be given"
            )
        folder = resume
        summary = _resume(resume, given, engine, checkpoint_every, ray_options, sink or [])
    else:
        chosen = Config.from_flat({**(read_toml(config) if config else {}), **given})
        folder = out or new_folder(chosen)
        summary = _start(chosen, engine, folder, checkpoint_every, ray_options, sink or [])
    show_summary(summary, folder)
    if summary["status"] == "diverged":
        raise typer.Exit(EXIT_DIVERGED)
    if summary["status"] == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


def _start(
    config: Config,
    engine: str,
    folder: Path,
    checkpoint_every: int,
    ray_options: dict[str, Any],
    sink: list[str],
) -> Line:
    from sims.engines import start

    sinks = open_sinks(sink, folder, config)
    with sinks, RunBar(config.num_rounds) as bar:
        summary = start(
            config,
            folder,
            engine=engine,
            on_round=bar.with_sinks(sinks),
            on_forecast=tell_forecast,
            checkpoint_every=checkpoint_every,
            **ray_options,
        )
    sinks.on_end(summary)
    return summary


def _resume(
    folder: Path,
    given: dict[str, Any],
    engine: str,
    checkpoint_every: int,
    ray_options: dict[str, Any],
    sink: list[str],
) -> Line:
    from fedef.run_folder import RunFolder
    from sims.engines import local_workers, opener
    from sims.run_loop import resume_run

    open_engine = opener(engine, **ray_options)
    before = RunFolder.open(folder)[1]
    config = Config.from_flat({**before.to_flat(), **given})
    sinks = open_sinks(sink, folder, config)
    with sinks, RunBar(config.num_rounds) as bar:
        summary = resume_run(
            folder,
            open_engine=open_engine,
            name=engine,
            num_rounds=config.num_rounds,
            on_round=bar.with_sinks(sinks),
            on_forecast=tell_forecast,
            checkpoint_every=checkpoint_every,
            workers=local_workers(engine, ray_options),
        )
    sinks.on_end(summary)
    return summary
