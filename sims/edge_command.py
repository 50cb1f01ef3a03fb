"""``fedef edge``: real clients."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedef.config import Config
from fedef.errors import ConfigError
from sims.run_display import RunBar, show_summary
from sims.settings import Assignments, DataDir, OutFolder, new_folder, read_settings

edge = typer.Typer(
    help="Real clients: Flower's SuperLink and SuperNodes over gRPC, with TLS and node keys.",
    no_args_is_help=True,
)


@edge.command("init")
def edge_init(
    folder: Annotated[Path, typer.Argument(help="A new folder for certificates and keys.")],
    nodes: Annotated[int, typer.Option(help="How many nodes get a key.")],
    host: Annotated[str, typer.Option(help="Name or IP address by which nodes reach the server.")],
) -> None:
    r"""Make a certificate authority, the server's certificate and the nodes' keys.

    \b
    fedef edge init federation --nodes 3 --host fl.example.org

    Prints the commands that start the federation. Private files get mode 0600; nothing that is
    there already is overwritten.
    """
    from sims.credentials import Credentials, instructions

    for line in instructions(Credentials.create(folder, num_nodes=nodes, host=host)):
        typer.echo(line)


@edge.command("demo")
def edge_demo(
    settings: Assignments = None,
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes to start.")] = 3,
    out: OutFolder = None,
    data_dir: DataDir = None,
) -> None:
    r"""Run the digits on a federation on the loopback, with TLS and node keys, and stop it.

    \b
    fedef edge demo num-rounds=3

    A round takes seconds: a SuperNode asks for work every 3 s and starts a process for each task.
    """
    from sims.deployment import deployed_run
    from sims.flower_run import run_flower

    given = read_settings(settings, data_dir)
    values = {"num-clients": nodes, "num-rounds": 5, **given}
    if values["num-clients"] != nodes:
        raise ConfigError(
            f"num-clients: the demo has one client a node, got {values['num-clients']} and "
            f"{nodes} nodes; set --nodes"
        )
    config = Config.from_flat(values)
    folder = out or new_folder(config)
    with RunBar(config.num_rounds) as bar:
        launch = partial(deployed_run, on_step=bar.say)
        summary = run_flower(config, folder, on_round=bar.advance, launch=launch)
    show_summary(summary, folder)
