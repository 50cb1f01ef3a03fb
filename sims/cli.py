"""The command line: ``fedef run``, ``fedef keys``, ``fedef bench``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedef import ensure_ours
from fedef.config import Config, read_toml
from fedef.errors import ConfigError, FedefError
from fedef.experiment import Experiment
from fedef.recorder import Line
from fedef.service import Service
from sims.memory import Forecast, spelled
from sims.partition_command import partition_command
from sims.report.command import report_command
from sims.reproduce.command import reproduce_command
from sims.settings import DataDir, read_settings
from sims.sinks import Sinks, open_sinks
from sims.sweeps.command import sweep_command

app = typer.Typer(
    help="Federated learning with normalized error feedback: clients send top-k corrections, "
    "the server takes normalized steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console()
_err = Console(stderr=True)
EXIT_ERROR, EXIT_DIVERGED, EXIT_INTERRUPTED = 1, 3, 130


@app.command()
def run(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings, e.g. method=norm-ef21 k-fraction=0.01"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; KEY=VALUE go before it.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="inline: in this process; ray: on the cores of this machine or of a Ray cluster; "
            "flower: flwr run on Flower's Ray backend."
        ),
    ] = "inline",
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. Default: a new one in runs/.")
    ] = None,
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
        folder = out or _new_folder(chosen)
        summary = _start(chosen, engine, folder, checkpoint_every, ray_options, sink or [])
    _show(summary, folder)
    if summary["status"] == "diverged":
        raise typer.Exit(EXIT_DIVERGED)
    if summary["status"] == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command()
def keys() -> None:
    """List all settings with their defaults and meanings."""
    for keys_of in (Config, Service):
        table = Table("key", "default", "meaning", box=None, pad_edge=False)
        defaults = keys_of().to_flat()
        for name, field in keys_of.model_fields.items():
            key = name.replace("_", "-")
            table.add_row(Text(key, "bold"), str(defaults[key]), Text(field.description or ""))
        _out.print(table)
        if keys_of is Config:
            _out.print("\nOnly in the run config of 'flwr run':")


@app.command()
def theory(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as for 'fedef run'."),
    ] = None,
    eps: Annotated[float, typer.Option(help="Accuracy that iteration counts are for.")] = 1e-2,
    lower_bound: Annotated[float, typer.Option(help="A number that f never goes below.")] = 0.0,
    data_dir: DataDir = None,
) -> None:
    r"""What the theorems say about a problem and a compressor: constants, steps, bounds.

    \b
    fedef theory problem=polynomial num-clients=1 k=1 num-rounds=2000
    """
    from sims.theory_table import describe

    config = Config.from_flat(read_settings(settings, data_dir))
    experiment = Experiment.build(config)
    rows = describe(
        experiment.problem,
        experiment.method.compressor,
        num_rounds=config.num_rounds,
        weights=experiment.weights,
        participation=config.participation,
        eps=eps,
        lower_bound=lower_bound,
        seed=config.seed,
    )
    table = Table("theorem", "quantity", "value", "note", box=None, pad_edge=False)
    for row in rows:
        value = "n/a" if row.value is None else f"{row.value:.6g}"
        table.add_row(*map(escape, (row.theorem, row.quantity, value, row.note)))
    _out.print(table)


@app.command()
def bench(
    turns: Annotated[int, typer.Option(min=1, help="Turns that the contenders take.")] = 60,
    only: Annotated[
        str, typer.Option(help="One group: core, rounds, tiny, clients or server. Default: all.")
    ] = "",
) -> None:
    """Measure ours against bare loops and other simulators, side by side, and print ratios."""
    from sims.bench import run_benchmarks

    table = Table("what", "ours", "beside", "ratio", "asked")
    for row in run_benchmarks(turns=turns, only=only):
        table.add_row(row.what, row.ours, row.beside, f"{row.ratio:.3f}", f"<= {row.asked:.3g}")
    _out.print(table)


app.command("reproduce")(reproduce_command)
app.command("partition")(partition_command)
app.command("sweep")(sweep_command)
app.command("report")(report_command)

edge = typer.Typer(
    help="Real clients: Flower's SuperLink and SuperNodes over gRPC, with TLS and node keys.",
    no_args_is_help=True,
)
app.add_typer(edge, name="edge")


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
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as for 'fedef run'."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes to start.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. Default: a new one in runs/.")
    ] = None,
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
    folder = out or _new_folder(config)
    with _Bar(config.num_rounds) as bar:
        launch = partial(deployed_run, on_step=bar.say)
        summary = run_flower(config, folder, on_round=bar.advance, launch=launch)
    _show(summary, folder)


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
    with sinks, _Bar(config.num_rounds) as bar:
        summary = start(
            config,
            folder,
            engine=engine,
            on_round=bar.with_sinks(sinks),
            on_forecast=_tell,
            checkpoint_every=checkpoint_every,
            **ray_options,
        )
    sinks.on_end(summary)
    return summary


def _tell(forecast: Forecast) -> None:
    _err.print(Text(str(forecast)), soft_wrap=True)


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
    with sinks, _Bar(config.num_rounds) as bar:
        summary = resume_run(
            folder,
            open_engine=open_engine,
            name=engine,
            num_rounds=config.num_rounds,
            on_round=bar.with_sinks(sinks),
            on_forecast=_tell,
            checkpoint_every=checkpoint_every,
            workers=local_workers(engine, ray_options),
        )
    sinks.on_end(summary)
    return summary


def _new_folder(config: Config) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.problem}-{config.method}-seed{config.seed}-{stamp}"
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


class _Bar(Progress):
    """Progress with the last round's loss, gradient norm and the bytes so far."""

    def __init__(self, num_rounds: int) -> None:
        super().__init__(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=_err,
        )
        self._uplink = 0
        self._bar = self.add_task("starting", total=num_rounds)

    def say(self, step: str) -> None:
        """Show what is being done before the first round."""
        self.update(self._bar, description=step)

    def with_sinks(self, sinks: Sinks) -> Callable[[Line], None]:
        """Both are told of a round."""

        def tell(line: Line) -> None:
            self.advance(line)
            sinks.on_round(line)

        return tell

    def advance(self, line: Line) -> None:  # type: ignore[override]  # a bar of one task
        """Show one line of rounds.jsonl."""
        self._uplink += line["uplink-bytes"]
        loss = line["loss"] if line["loss"] is not None else line["train-loss"]
        text = (
            f"loss {_number(loss)}  |grad| {_number(line['grad-norm'])}  up {spelled(self._uplink)}"
        )
        self.update(self._bar, completed=line["round"], description=text)


def _show(summary: Line, folder: Path) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    uplink = summary["uplink-bytes"]
    saved = summary["dense-uplink-bytes"] / uplink if uplink else 1.0
    rows = {
        "status": summary["status"],
        "run": f"{summary['method']} on {summary['problem']}, seed {summary['seed']}, "
        f"{summary['rounds']} rounds, engine {summary['engine']}",
        "final loss": _number(summary["final-loss"]),
        "final |grad|": _number(summary["final-grad-norm"]),
        "test accuracy": _number(summary["test-accuracy"]),
        "uplink": spelled(uplink)
        + (f", {saved:.1f} times less than dense" if saved > 1.05 else ""),
        "downlink": spelled(summary["downlink-bytes"]),
        "envelope": spelled(summary["envelope-bytes"]),
        "refused": f"{summary['refused']} {summary['refusals'] or ''}".strip(),
        "model sha256": summary["model-sha256"],
        "seconds": f"{summary['seconds']:.1f}",
        "folder": str(folder),
    }
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    _out.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _fail(message: str) -> NoReturn:
    """End with one line; as text, since what a user typed may look like rich's markup."""
    line = Text.assemble(("error", "bold red"), " ", message)
    _err.print(line, highlight=False, soft_wrap=True)
    sys.exit(EXIT_ERROR)


def main() -> None:
    """Run the command line; an error on purpose is one line and exit status 1."""
    try:
        ensure_ours()
        app()
    except FedefError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder that was removed meanwhile
        _fail(f"{error}; check the disk and the folder's permissions")
    except MemoryError as error:
        _fail(f"not enough memory ({error}); choose fewer clients or a smaller problem")
    except KeyboardInterrupt:
        _err.print("interrupted")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
