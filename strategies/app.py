"""The ServerApp: a whole run on Flower, recorded in a run folder."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedef import ensure_ours
from fedef.config import OUT_KEY, Config
from fedef.experiment import Experiment
from fedef.recorder import Recorder
from fedef.run_folder import RunFolder
from fedef.server_session import Diverged, RoundReport, ServerSession
from fedef.stopping import LAST_ROUND
from fedef.threads import single_threaded
from strategies.error_feedback import ErrorFeedback

ensure_ours()


class _Stopped(Exception):  # noqa: N818 - the end of a run, no error
    """Takes the run out of Flower's loop, which knows no end but its last round."""


def make_app(build: Callable[[Config], Experiment] = Experiment.build) -> ServerApp:
    """Return a ServerApp that runs experiments which `build` makes from the run config."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        with single_threaded():
            experiment = build(Config.from_run_config(context.run_config))
            out = Path(str(context.run_config.get(OUT_KEY) or f"runs/flower-{context.run_id}"))
            run(grid, experiment, out)

    return app


def run(grid: Grid, experiment: Experiment, out: Path) -> None:
    """Run an experiment over a grid of Flower nodes into the folder `out`."""
    folder = RunFolder.create(out, experiment.config, engine="flower")
    recorder = Recorder(experiment, folder, engine="flower")

    def on_round(report: RoundReport, session: ServerSession, envelope: int) -> None:
        recorder.round_ended(report, session, envelope_bytes=envelope)
        if recorder.stopped_by(session) not in (None, LAST_ROUND):
            raise _Stopped
        recorder.round_began()

    strategy = ErrorFeedback(experiment, on_round=on_round)
    status = "completed"
    try:
        strategy.start(grid, strategy.initial_arrays(), num_rounds=experiment.config.num_rounds)
    except _Stopped:
        pass
    except Diverged:
        status = "diverged"
    recorder.finish(strategy.session, status=status)


app = make_app()
