"""The app behind `sims.wire_bench`: a client that moves d numbers, for FedAvg or for fedef."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from clients.mod import error_feedback_mod
from strategies.adoption import ErrorFeedback

client = ClientApp(mods=[error_feedback_mod])
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Move by random numbers, which no compression of bytes makes shorter."""
    x = message.content.array_records["arrays"]["x"].numpy()
    number = int(str(message.content.config_records["config"]["server-round"]))
    moved = x - np.random.default_rng(number).standard_normal(x.size, dtype=np.float32)
    arrays = ArrayRecord({"x": Array(moved)})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and write when each round ended."""
    config = context.run_config
    count = int(str(config["nodes"]))
    nodes: dict[str, Any] = {"min_train_nodes": count, "min_available_nodes": count}
    nodes["fraction_evaluate"] = 0.0
    sparse = ErrorFeedback(k_fraction=0.01, **nodes)
    strategy = sparse if config["kind"] == "fedef" else FedAvg(**nodes)
    ends: list[float] = []

    def ended(round: int, arrays: ArrayRecord) -> None:
        ends.append(time.monotonic())

    start = ArrayRecord({"x": Array(np.zeros(int(str(config["dimension"])), np.float32))})
    rounds = int(str(config["rounds"]))
    strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, evaluate_fn=ended)
    payload = sparse.session.state.uplink_bytes if config["kind"] == "fedef" else 0
    result = {"seconds": np.diff(ends).tolist(), "payload": payload}
    Path(str(config["out"])).write_text(json.dumps(result), encoding="utf-8")
