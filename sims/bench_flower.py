"""Two contenders on Flower's simulation with Ray: Flower's own FedAvg, and fedef's strategy."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.simulation import run_simulation
from torch import nn

from clients.app import make_app
from sims.bench_rounds import Turn
from sims.bench_task import CONFIG, NUM_CLIENTS, build, client_data, mlp
from strategies.error_feedback import ErrorFeedback

WORKERS = 2
LEARNING_RATE = 0.1
plain = ClientApp()


@plain.train()
def train(message: Message, context: Context) -> Message:
    """One full-batch gradient step from the server's model, and the model back."""
    torch.set_num_threads(1)
    model = mlp()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    inputs, targets = client_data()[int(context.node_config["partition-id"])]
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    torch.optim.SGD(model.parameters(), lr=LEARNING_RATE).step()
    metrics = MetricRecord({"num-examples": len(targets), "train-loss": loss.item()})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


error_feedback = make_app(build)


def fedavg(turn: Turn) -> None:
    """Flower's stock FedAvg, no evaluation."""
    strategy = FedAvg(fraction_evaluate=0.0)
    _simulate(strategy, ArrayRecord(mlp().state_dict()), plain, turn)


def fedef(turn: Turn) -> None:
    """The strategy and clients of fedef."""
    strategy = ErrorFeedback(build(CONFIG))
    _simulate(strategy, strategy.initial_arrays(), error_feedback, turn)


def _simulate(strategy: Strategy, start: ArrayRecord, clients: ClientApp, turn: Turn) -> None:
    """Rounds without end, each of which waits for its turn."""
    configure, aggregate = strategy.configure_train, strategy.aggregate_train

    def configured(*arguments: Any) -> Iterable[Message]:
        turn.wait()
        return configure(*arguments)

    def aggregated(*arguments: Any) -> Any:
        result = aggregate(*arguments)
        turn.done()
        return result

    vars(strategy).update(configure_train=configured, aggregate_train=aggregated)  # of this one
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            strategy.start(grid, start, num_rounds=10**9)
        except SystemExit:  # Flower would wait for this thread's verdict for ever
            os._exit(0)

    run_simulation(
        server,
        clients,
        num_supernodes=NUM_CLIENTS,
        backend_config={
            "init_args": {"num_cpus": WORKERS, "include_dashboard": False},
            "client_resources": {"num_cpus": 1},
        },
    )
