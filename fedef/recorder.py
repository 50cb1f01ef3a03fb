"""From a round's report to its line in rounds.jsonl, and from a run to its summary.

A line describes the model *after* its round: ``loss``, ``grad-norm`` and ``test-accuracy`` are
null in rounds that are not evaluated (key ``eval-every``), and always where buffers stay local.
``train-loss`` is what the participants reported of the model they got. All byte counts are of
this round alone. ``zeta2`` is the gradients' dissimilarity (key ``heterogeneity-every``); null on
Flower, whose server does not see the clients' gradients.
"""

from __future__ import annotations

import time
from hashlib import sha256
from math import isfinite, nan
from typing import Any

import numpy as np

from fedef.experiment import Experiment
from fedef.heterogeneity import gradient_dissimilarity, label_table
from fedef.problems.base import Evaluation
from fedef.run_folder import RunFolder
from fedef.server_session import RoundReport, ServerSession
from fedef.stopping import stop_rule
from fedef.vectors import Vector

Line = dict[str, Any]
_SUMMED = (
    "uplink-bytes",
    "downlink-bytes",
    "envelope-bytes",
    "bound-bytes",
    "gradient-evaluations",
    "refused",
    "seconds",
)


class Recorder:
    """Writes a run's folder as its rounds end."""

    def __init__(self, experiment: Experiment, folder: RunFolder, *, engine: str) -> None:
        self._experiment = experiment
        self._folder = folder
        self._engine = engine
        self._evaluated: tuple[int, Evaluation] | None = None
        self._round_began = time.perf_counter()
        weights = np.array(experiment.weights, dtype=np.float64)
        self._weights = weights / np.add.reduce(weights)
        self._dissimilarity: tuple[int, float | None] | None = None
        self._last: Line | None = None
        for line in folder.rounds():  # of a run that goes on
            self._last = line

    def round_began(self) -> None:
        """Start the round's clock."""
        self._round_began = time.perf_counter()

    def round_ended(
        self, report: RoundReport, server: ServerSession, *, envelope_bytes: int = 0
    ) -> Line:
        """Append the round's line and return it.

        `envelope_bytes`: what the transport added around the payloads, both directions.
        """
        every, seconds = self._experiment.config.eval_every, time.perf_counter() - self._round_began
        evaluation = Evaluation(nan, None, None)
        if every and report.round % every == 0:
            evaluation = self._evaluate(server)
        spread_every = self._experiment.config.heterogeneity_every
        spread = None
        if spread_every and report.round % spread_every == 0:
            spread = self._measure_dissimilarity(server.round, server.x, server.buffers)
        line = {
            "round": report.round,
            "loss": _number(evaluation.loss),
            "grad-norm": _number(evaluation.gradient_norm),
            "test-accuracy": _number(evaluation.test_accuracy),
            "train-loss": _number(report.train_loss),
            "estimate-norm": _number(report.estimate_norm),
            "step-size": report.step_size,
            "participants": len(report.accepted),
            "missing": list(report.missing),
            "refused": sum(report.refusals.values()),
            "refusals": report.refusals,
            "uplink-bytes": report.uplink_bytes,
            "downlink-bytes": report.downlink_bytes,
            "envelope-bytes": envelope_bytes,
            "bound-bytes": report.bound_bytes,
            "gradient-evaluations": report.gradient_evaluations,
            "independent-norm": _number(report.independent_norm),
            "zeta2": spread,
            "seconds": round(seconds, 6),
        }
        self._folder.append_round(line)
        self._last = line
        return line

    def stopped_by(self, server: ServerSession) -> str | None:
        """Key of the rule that ends the run now, ``num-rounds`` among them; None: it goes on."""
        if self._last is None:
            return None
        config = self._experiment.config
        return stop_rule(config, self._last, uplink_bytes=server.state.uplink_bytes)

    def finish(self, server: ServerSession, *, status: str, keep_model: bool = True) -> Line:
        """Write the summary and, to `keep_model`, the model, and return the summary.

        `status`: completed, interrupted or diverged.
        """
        evaluation = self._evaluate(server)
        unknown = _has_local_buffers(self._experiment)
        if not isfinite(evaluation.loss) and not unknown and status == "completed":
            status = "diverged"
        config = self._experiment.config
        lines = list(self._folder.rounds())
        totals = {name: sum(line[name] for line in lines) for name in _SUMMED}
        summary = {
            "status": status,
            "stopped-by": self.stopped_by(server) if status == "completed" else None,
            "method": config.method,
            "problem": config.problem,
            "engine": self._engine,
            "seed": config.seed,
            "rounds": server.round,
            "final-loss": _number(evaluation.loss),
            "final-grad-norm": _number(evaluation.gradient_norm),
            "test-accuracy": _number(evaluation.test_accuracy),
            **totals,
            "seconds": round(totals["seconds"], 3),
            "dense-uplink-bytes": sum(line["participants"] for line in lines)
            * server.x.size
            * server.x.itemsize,
            "refusals": server.state.refusals,
            "refused-clients": {
                str(client): of.refused
                for client, of in sorted(server.state.conduct.items())
                if of.refused
            },
            "excluded": {str(c): why for c, why in sorted(server.members.excluded.items())},
            "dimension": server.x.size,
            **self._heterogeneity(server),
            "model-sha256": model_sha256(server.x),
        }
        if keep_model:
            self._folder.write_model(named_model(self._experiment, server))
        self._folder.write_summary(summary)
        return summary

    def _heterogeneity(self, server: ServerSession) -> Line:
        """The clients' sizes and classes, and zeta^2 at x^0 and at the end where it is measured."""
        problem, sizes = self._experiment.problem, self._experiment.problem.num_examples
        table = label_table(problem)
        start = end = None
        if self._experiment.config.heterogeneity_every:
            end = self._measure_dissimilarity(server.round, server.x, server.buffers)
            start = self._measure_dissimilarity(
                0, problem.initial_point(), problem.initial_buffers()
            )
        return {
            "zeta2-start": start,
            "zeta2-end": end,
            "label-distance": None if table is None else table.distance(self._weights.tolist()),
            "clients": len(sizes),
            "client-examples-smallest": min(sizes),
            "client-examples-median": float(np.median(sizes)),
            "client-examples-largest": max(sizes),
        }

    def _measure_dissimilarity(self, round: int, x: Vector, buffers: Vector) -> float | None:
        """zeta^2 at the model of a round; once for the last round, which is asked for twice."""
        if self._engine == "flower" or _has_local_buffers(self._experiment):
            return None
        if self._dissimilarity is None or self._dissimilarity[0] != round:
            spread = gradient_dissimilarity(
                self._experiment.problem, x, weights=self._weights.tolist(), buffers=buffers
            )
            self._dissimilarity = (round, _number(spread))
        return self._dissimilarity[1]

    def _evaluate(self, server: ServerSession) -> Evaluation:
        if self._evaluated is None or self._evaluated[0] != server.round:
            evaluation = Evaluation(nan, None, None)
            if not _has_local_buffers(self._experiment):
                evaluation = self._experiment.problem.evaluate(
                    server.x, weights=self._weights, buffers=server.buffers
                )
            self._evaluated = (server.round, evaluation)
        return self._evaluated[1]


def named_model(experiment: Experiment, server: ServerSession) -> dict[str, Vector]:
    """Return the server's model by its parts' names.

    Buffers that stay local are not on the server: they have the values of the start.
    """
    local = _has_local_buffers(experiment)
    buffers = experiment.problem.initial_buffers() if local else server.buffers
    return experiment.problem.named_arrays(server.x, buffers)


def _has_local_buffers(experiment: Experiment) -> bool:
    """Whether each client's model is another one, which the server cannot evaluate."""
    local = experiment.config.buffers == "local"
    return local and experiment.problem.initial_buffers().size > 0


def model_sha256(x: Vector) -> str:
    """SHA-256 of the little-endian bytes of the model vector."""
    return sha256(x.astype(x.dtype.newbyteorder("<")).tobytes()).hexdigest()


def _number(value: float | None) -> float | None:
    """JSON has no NaN: what is not finite is null."""
    return float(value) if value is not None and isfinite(value) else None
