"""A run in a terminal: its forecast, its progress and its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedef.recorder import Line
from sims.memory import Forecast, spelled
from sims.sinks import Sinks

_out = Console()
_err = Console(stderr=True)


def tell_forecast(forecast: Forecast) -> None:
    """Say how much memory the run will need."""
    _err.print(Text(str(forecast)), soft_wrap=True)


class RunBar(Progress):
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


def show_summary(summary: Line, folder: Path) -> None:
    """Print what the run came to."""
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
