"""ResNet-20 on CIFAR-10 (arXiv:2410.16871, App. G.2): a short piece of it, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedef.server_session import Diverged
from fedef.threads import single_threaded
from sims.engine import InlineEngine
from sims.reproduce.runs import experiment_on
from sims.reproduce.study import UNIT, Comparison, Curve, Finding, Panel, Settings, Study
from sims.reproduce.verdict import Check

_DIMENSION = "269722"
_K = 2700
_LONG = 100
"""Rounds from which on the loss has to have fallen."""
_CONTENDERS = (("EF21", "ef21"), ("‖EF21‖", "norm-ef21"))


@dataclass(frozen=True)
class Size:
    """How much of it is run."""

    rounds: int
    batch: int
    train: int
    """Training images; 0: all."""
    evaluated: int
    """Training and test images of an evaluation."""
    every: int
    """Rounds between evaluations."""


QUICK = Size(rounds=3, batch=16, train=500, evaluated=200, every=1)
FULL = Size(rounds=200, batch=128, train=0, evaluated=1000, every=20)


@dataclass(frozen=True)
class Outcome:
    """One method's run."""

    rounds: NDArray[np.float64]
    """(points,): of the evaluations."""
    loss: NDArray[np.float64]
    """(points,): training loss; inf from where the run is no longer finite."""
    accuracy: NDArray[np.float64]
    """(points,): test accuracy."""
    uplink_bytes: int
    """Of the last round, per client."""
    buffer_bytes: int
    """Of those, batch-norm statistics."""
    dimension: int


def study(settings: Settings, *, size: Size | None = None) -> Study:
    """EF21 and ||EF21|| with gamma = 5, five clients, top-2700."""
    size = size or (QUICK if settings.quick else FULL)
    outcomes = []
    for place, (label, method) in enumerate(_CONTENDERS):

        def tell(round: int, label: str = label, place: int = place) -> None:
            share = (place + round / size.rounds) / len(_CONTENDERS)
            settings.tell(f"{label}, round {round} of {size.rounds}", share)

        outcomes.append(_run(settings, size, method, tell))
    images = "all 50,000 images" if size.train == 0 else f"{size.train:,} images"
    extent = f"{size.rounds} rounds, minibatch {size.batch} per client, {images}"
    return Study(
        name="resnet20",
        paper=UNIT,
        title="ResNet-20 on CIFAR-10",
        about="Five clients, batch norm, no augmentation, constant step γ = 5, top-k with k = 2700 "
        "≈ 0.01 d, dense first message (arXiv:2410.16871, App. G.2). The paper runs 7800 rounds "
        "with minibatches of 128: that needs a GPU and has not been run here.",
        findings=_findings(size, outcomes, extent),
        panels=(
            _panel("resnet20-loss", "training loss", [o.loss for o in outcomes], outcomes, extent),
            _panel(
                "resnet20-accuracy",
                "test accuracy",
                [o.accuracy for o in outcomes],
                outcomes,
                extent,
            ),
        ),
        comparisons=(
            Comparison(
                f"What can be checked without the full run (n = 1 seed, {extent}). Agrees: the "
                "same number; rows without a verdict are only shown.",
                tuple(_checks(outcomes)),
            ),
        ),
        settings=(
            "problem=resnet20 data=cifar10 num-clients=5 partitioner=iid compressor=top-k k=2700 "
            "init=full schedule=constant step-size=5 seed=1; method=ef21 and method=norm-ef21",
            f"{extent}; loss and accuracy on {size.evaluated:,} training and test images drawn by "
            "the seed",
        ),
        notes=(
            "The released code does not run the algorithm: the master adds every client's message "
            "into client 0's estimate in place, each worker starts from its own random network and "
            "nothing synchronizes them, and the first estimate is 128 times too small. Whether the "
            "paper's figures were made with exactly that code is not known; we take them as "
            "unverified and do not compare curves.",
            "Steps of length 5 throw the network far in the first ten rounds, where the loss "
            "rises, and the averaged batch-norm statistics that the evaluation uses lag behind the "
            "weights: read the first points of the loss with that in mind.",
            "The paper counts k·32 bits per message and no indices; every byte here was sent.",
            "Deviations: the first dense message is the gradient of a minibatch, not of a client's "
            "whole data; clients have 10,000 images each, not 10,112 and 9,552; batch-norm "
            "statistics are averaged by the server.",
        ),
    )


def _run(settings: Settings, size: Size, method: str, tell: Callable[[int], None]) -> Outcome:
    experiment = experiment_on(
        None,
        problem="resnet20",
        data="cifar10",
        data_dir=settings.data_folder,
        num_clients=5,
        partitioner="iid",
        compressor="top-k",
        k=_K,
        init="full",
        schedule="constant",
        step_size=5.0,
        local_batch_size=size.batch,
        train_examples=size.train,
        eval_examples=size.evaluated,
        test_examples=size.evaluated,
        num_rounds=size.rounds,
        seed=1,
        method=method,
    )
    problem = experiment.problem
    weights = np.array(experiment.weights) / np.sum(experiment.weights)
    at: list[int] = []
    losses: list[float] = []
    accuracies: list[float] = []
    sent = 0
    with single_threaded(), np.errstate(over="ignore", invalid="ignore"):
        engine = InlineEngine(experiment)
        for round in range(size.rounds + 1):
            if round % size.every == 0 or round == size.rounds:
                server = engine.server
                quality = problem.evaluate(server.x, weights=weights, buffers=server.buffers)
                at.append(round)
                losses.append(quality.loss if np.isfinite(quality.loss) else np.inf)
                accuracies.append(
                    np.nan if quality.test_accuracy is None else quality.test_accuracy
                )
            tell(round)
            if round == size.rounds:
                break
            try:
                sent = engine.round().uplink_bytes
            except Diverged:
                break
    buffers = problem.initial_buffers()
    return Outcome(
        np.array(at, dtype=np.float64),
        np.array(losses),
        np.array(accuracies),
        sent // len(problem.num_examples),
        buffers.nbytes,
        problem.dimension,
    )


def _checks(outcomes: list[Outcome]) -> list[Check]:
    first = outcomes[0]
    own = first.uplink_bytes - first.buffer_bytes
    checks = [
        Check("d", "paper", _DIMENSION, str(first.dimension), str(first.dimension) == _DIMENSION),
        Check(
            "bytes of one message",
            "paper (32 k bits)",
            f"{4 * _K:,}",
            f"{own:,} and {first.buffer_bytes:,} of batch norm",
            None,
            "the paper counts no indices, and sends no batch-norm statistics",
        ),
    ]
    for (label, _), outcome in zip(_CONTENDERS, outcomes, strict=True):
        judged = bool(outcome.rounds[-1] >= _LONG)
        checks.append(
            Check(
                f"{label}, training loss over {outcome.rounds[-1]:.0f} rounds",
                "paper's figure",
                "falls",
                f"{outcome.loss[0]:.3g} to {outcome.loss[-1]:.3g}",
                bool(outcome.loss[-1] < outcome.loss[0]) if judged else None,
                "" if judged else "too few rounds to judge",
            )
        )
        checks.append(
            Check(
                f"{label}, test accuracy after {outcome.rounds[-1]:.0f} rounds",
                "paper's figure",
                "curves only",
                f"{outcome.accuracy[-1]:.3f}",
                None,
                "a small part of the paper's 7800 rounds",
            )
        )
    return checks


def _findings(size: Size, outcomes: list[Outcome], extent: str) -> tuple[Finding, ...]:
    ef21, unit = outcomes
    ends = f"{ef21.accuracy[-1]:.2f} (EF21) and {unit.accuracy[-1]:.2f} (‖EF21‖)"
    short = "Only the start of it is run here" if size.train == 0 else "Only that it runs is shown"
    return (
        Finding(
            None,
            "‖EF21‖'s accuracy gain of up to 10 % over EF21: the paper's full setting needs a GPU "
            f"and has not been run here. {short}: {extent}; test accuracy {ends}.",
        ),
    )


def _panel(
    name: str,
    what: str,
    values: list[NDArray[np.float64]],
    outcomes: list[Outcome],
    extent: str,
) -> Panel:
    return Panel(
        name=name,
        title="ResNet-20",
        x_label="round",
        y_label=what,
        curves=tuple(
            Curve(outcome.rounds, y, color, label)
            for color, ((label, _), outcome, y) in enumerate(
                zip(_CONTENDERS, outcomes, values, strict=True)
            )
        ),
        caption=f"n = 1 seed; {extent}.",
        linear=what == "test accuracy",
    )
