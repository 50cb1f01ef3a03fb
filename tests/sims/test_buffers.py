"""Batch norm end to end: statistics averaged by the server, or kept by each client."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.problems.torch_problem import TorchProblem
from fedef.recorder import Recorder, named_model
from fedef.run_folder import RunFolder
from sims.checkpoint import load_checkpoint, save_checkpoint
from sims.engine import InlineEngine

NUM_BUFFERS = 2 * 8


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def build(**settings) -> Experiment:
    """Four clients whose inputs have different means."""
    draw = torch.Generator().manual_seed(0)
    inputs = [3 * torch.randn(40, 2, generator=draw) + client for client in range(4)]
    clients = [(x, (x[:, 0] > client).long()) for client, x in enumerate(inputs)]
    test = (torch.cat([x for x, _ in clients]), torch.cat([y for _, y in clients]))
    problem = TorchProblem(
        "bn", module=module, loss=nn.functional.cross_entropy, clients=clients, test=test, seed=0
    )
    flat = {key.replace("_", "-"): value for key, value in settings.items()}
    base = {"num-clients": 4, "k": 5, "local-batch-size": 8, "step-size": 0.5, "num-rounds": 30}
    return Experiment.of(Config.from_flat({**base, **flat}), problem)


def bits(engine: InlineEngine) -> tuple[bytes, ...]:
    clients = [engine.clients[i].state.buffers.tobytes() for i in sorted(engine.clients)]
    return engine.server.x.tobytes(), engine.server.buffers.tobytes(), *clients


@pytest.mark.parametrize("participation", [1.0, 0.5])
@pytest.mark.parametrize("buffers", ["average", "local"])
def test_a_checkpoint_holds_the_statistics(tmp_path, buffers, participation):
    settings = {"buffers": buffers, "participation": participation}
    whole = InlineEngine(build(**settings))
    for _ in range(4):
        whole.round()
    save_checkpoint(tmp_path / "checkpoint", whole)
    again = load_checkpoint(tmp_path / "checkpoint", build(**settings))
    for _ in range(4):
        whole.round(), again.round()
    assert bits(again) == bits(whole)


def test_averaged_statistics_are_the_weighted_mean_of_the_participants():
    experiment = build(local_batch_size=0)
    engine = InlineEngine(experiment)
    x, before = engine.server.x, engine.server.buffers
    engine.round([1, 3])
    own = [experiment.problem.local(client, x, buffers=before).buffers for client in (1, 3)]
    np.testing.assert_allclose(engine.server.buffers, np.mean(own, axis=0), rtol=1e-6)
    assert np.abs(engine.server.buffers - before).max() > 0.01


def test_local_steps_carry_the_statistics_from_pass_to_pass():
    """Each pass starts from the statistics of the one before; the last ones are averaged."""
    experiment = build(local_batch_size=0, local_steps=3, local_step_size=0.2)
    engine = InlineEngine(experiment)
    x, before = engine.server.x, engine.server.buffers
    engine.round()
    ends = []
    for client in range(4):
        y, buffers = x, before
        for _ in range(3):
            result = experiment.problem.local(client, y, buffers=buffers)
            y, buffers = y - np.float32(0.2) * result.gradient, result.buffers
        ends.append(buffers)
    np.testing.assert_allclose(engine.server.buffers, np.mean(ends, axis=0), rtol=1e-6)


def test_averaged_statistics_are_counted_in_both_directions():
    average, local = (
        InlineEngine(build(compressor="identity")),
        InlineEngine(build(compressor="identity", buffers="local")),
    )
    with_, without = average.round(), local.round()
    payload = 24 + 4 * NUM_BUFFERS
    assert with_.uplink_bytes - without.uplink_bytes == 4 * payload
    assert with_.downlink_bytes - without.downlink_bytes == 4 * payload


def test_local_statistics_differ_by_client_and_roll_back_with_a_lost_reply():
    lost, absent = InlineEngine(build(buffers="local")), InlineEngine(build(buffers="local"))
    for round in range(1, 6):
        lost.round(network=lambda replies, r=round: replies[1:] if r == 3 else replies)
        absent.round([1, 2, 3] if round == 3 else None)
    assert bits(lost) == bits(absent)
    assert len(set(bits(lost)[2:])) == 4


@pytest.mark.parametrize("buffers", ["average", "local"])
def test_a_run_is_recorded_to_its_end(tmp_path, buffers):
    """With local statistics there is no one model to evaluate: null, not a number that misleads."""
    experiment = build(buffers=buffers)
    engine = InlineEngine(experiment)
    folder = RunFolder.create(tmp_path / "run", experiment.config, engine="inline")
    recorder = Recorder(experiment, folder, engine="inline")
    for _ in range(30):
        line = recorder.round_ended(engine.round(), engine.server)
    summary = recorder.finish(engine.server, status="completed")
    assert summary["status"] == "completed"
    assert set(load_file(folder.path / "model.safetensors")) == set(
        named_model(experiment, engine.server)
    )
    assert line["train-loss"] < 0.6
    if buffers == "average":
        assert summary["test-accuracy"] > 0.7
    else:
        assert summary["test-accuracy"] is summary["final-loss"] is line["loss"] is None
