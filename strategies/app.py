"""The ServerApp: a whole run on Flower, recorded in a run folder."""

import secrets
from collections.abc import Callable
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedef import ensure_ours
from fedef.checkpoint import Checkpoint
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.members import MIRRORED
from fedef.recorder import Recorder
from fedef.resume import cut_back, require_same_run
from fedef.run_folder import RunFolder
from fedef.server_session import Diverged, RoundReport, ServerSession
from fedef.server_store import ServerStore
from fedef.service import Service
from fedef.stopping import LAST_ROUND
from fedef.threads import single_threaded
from strategies.error_feedback import ErrorFeedback

ensure_ours()


class _Stopped(Exception):  # noqa: N818 - the end of a run, no error
    """Takes the run out of Flower's loop, which knows no end but its last round."""


def make_app(
    build: Callable[[Config], Experiment] = Experiment.build,
    *,
    strategy_type: type[ErrorFeedback] = ErrorFeedback,
) -> ServerApp:
    """Return a ServerApp that runs experiments which `build` makes from the run config."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        with single_threaded():
            experiment = build(Config.from_run_config(context.run_config))
            service = Service.from_run_config(context.run_config)
            out = Path(service.out or f"runs/flower-{context.run_id}")
            run(grid, experiment, out, service, strategy_type=strategy_type)

    return app


def run(
    grid: Grid,
    experiment: Experiment,
    out: Path,
    service: Service | None = None,
    *,
    strategy_type: type[ErrorFeedback] = ErrorFeedback,
) -> None:
    """Run an experiment over a grid of Flower nodes into the folder `out`, or go on with one.

    Write ahead: what a round was told is on the disk before a task leaves that acknowledges it, in
    a checkpoint or, between two of them, in the journal.

    Raises
    ------
    ConfigError
        If a folder cannot be used.
    """
    service = service or Service()
    folder, store, checkpoint = _opened(experiment, out, service)
    recorder = Recorder(experiment, folder, engine="flower")

    def on_round(report: RoundReport, session: ServerSession, envelope: int) -> None:
        recorder.round_ended(report, session, envelope_bytes=envelope)
        rule = recorder.stopped_by(session)
        every = service.server_checkpoint_every
        if every:
            folder.sync_rounds()
            store.keep(checkpoint, session, report, last=rule is not None)
        if rule not in (None, LAST_ROUND):
            raise _Stopped
        recorder.round_began()

    strategy = strategy_type(
        experiment,
        on_round=on_round,
        checkpoint=checkpoint,
        policies=service.policies,
        mirror=store.rows,
        journaled=store.journals,
        round_seconds=service.round_timeout,
        min_replies=service.min_replies,
        stop_on_few=service.on_few_replies == "stop",
        min_clients=service.min_clients,
    )
    before = experiment.server(
        state=checkpoint.server,
        weights=checkpoint.weights or None,
        policies=service.policies,
        mirror=store.rows,
    )
    if recorder.stopped_by(before) is not None:  # all that was left to do is the summary
        recorder.finish(before, status="completed")
        return
    rounds = experiment.config.num_rounds - checkpoint.server.round
    status = "completed"
    try:
        strategy.start(
            grid, strategy.initial_arrays(), num_rounds=rounds, timeout=service.round_timeout
        )
    except _Stopped:
        pass
    except Diverged:
        status = "diverged"
    recorder.finish(strategy.session, status=status)


def _opened(
    experiment: Experiment, out: Path, service: Service
) -> tuple[RunFolder, ServerStore, Checkpoint]:
    """A new run's folder and start, or an old one's."""
    every = service.server_checkpoint_every
    if service.resume is not None:
        if service.out is not None and Path(service.out) != Path(service.resume):
            raise ConfigError(
                f"out: a resumed run keeps its folder {service.resume!r}, got {service.out!r}; "
                "leave out away"
            )
        folder, before = RunFolder.open(Path(service.resume))
        require_same_run(folder, before, experiment.config)
        folder.require_checkpoint()
        store = ServerStore(folder.checkpoint_path, experiment, service.policies, every=every)
        checkpoint = store.load()
        ahead = sum(line["round"] > checkpoint.server.round for line in folder.rounds())
        if ahead > 1:  # a crash explains one: a round's line is on the disk before the round
            log(
                WARNING,
                "fedef: %d rounds of rounds.jsonl are in no checkpoint and in no journal; they are "
                "done again, and the clients that took part in them are ahead of the server",
                ahead,
            )
        cut_back(folder, experiment.config, checkpoint.server.round)
        return folder, store, checkpoint
    folder = RunFolder.create(out, experiment.config, engine="flower")
    store = ServerStore(folder.checkpoint_path, experiment, service.policies, every=every)
    if service.on_lost_state in MIRRORED:
        log(INFO, "fedef: the mirror of all g_i takes up to %.3g MB", store.mirror_bytes / 1e6)
    checkpoint = Checkpoint(experiment.server().state, token=secrets.token_hex(16))
    return folder, store, store.save(checkpoint) if every else checkpoint


app = make_app()
