"""A federation with TLS and node keys on the loopback (slow: real processes)."""

import json
import time
import uuid
from pathlib import Path

import pytest

from fedef.config import Config
from fedef.errors import FedefError
from sims.credentials import Credentials
from sims.deployment import Deployment, deployed_run
from sims.flower_compat import GRPC
from sims.flower_engine import free_port, write_app
from sims.flower_run import run_flower
from sims.inline_run import run_inline
from sims.processes import processes_of, temporary_home

NODES = 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_same_model_as_inline_and_as_the_simulation(tmp_path, seed):
    config = Config.from_flat({"num-clients": NODES, "num-rounds": 2, "seed": seed})
    steps, lines = [], []
    deployed = run_flower(
        config,
        tmp_path / "deployed",
        on_round=lines.append,
        launch=lambda *args, **settings: deployed_run(*args, on_step=steps.append, **settings),
    )
    inline = run_inline(config, tmp_path / "inline")
    simulated = run_flower(config, tmp_path / "simulated")
    assert deployed["model-sha256"] == inline["model-sha256"] == simulated["model-sha256"]
    assert deployed["uplink-bytes"] == inline["uplink-bytes"]
    assert [line["round"] for line in lines] == [1, 2]
    assert len(steps) == 3 + NODES


def ended(process, seconds=120.0):
    """Exit status of a process that ends; None if it does not."""
    patience = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < patience:
        time.sleep(0.2)
    return process.poll()


REASONS = {
    "unknown": "Failed to activate SuperNode",
    "plaintext": "failed to connect to all addresses",
    "foreign": "CERTIFICATE_VERIFY_FAILED",
}
"""What Flower 1.39 says, over gRPC."""


@pytest.mark.slow
def test_strangers_are_refused(tmp_path):
    """No authorised key, no TLS, another authority's certificate: the SuperLink meets one node."""
    with temporary_home() as home, (tmp_path / "log").open("wb") as log:
        federation = Deployment(
            home, tmp_path / "log", log.fileno(), lambda: None, 300.0, num_nodes=2
        )
        made = federation.credentials
        other = Credentials.create(home / "other", num_nodes=1, host="127.0.0.1")
        federation.start_superlink()
        federation.register(0)
        known = federation.start_node(0)
        node = made.supernode_command(1)
        plaintext = [*node[: node.index("--root-certificates")], "--insecure"]
        foreign = [str(other.ca) if word == "ca.crt" else word for word in node]
        strangers = {}
        for name, command in (("unknown", node), ("plaintext", plaintext), ("foreign", foreign)):
            options = ["--port", str(free_port()), "--max-retries", "1", "--max-wait-time", "5"]
            output = (tmp_path / name).open("wb")
            strangers[name] = federation.popen(
                [*command, *options], output.fileno(), folder=made.node(1)
            )
        for name, process in strangers.items():
            status, said = ended(process), (tmp_path / name).read_text()
            assert status not in (0, None), f"{name}: {said}"
            assert "Activated" not in said
            assert not GRPC or REASONS[name] in said
        assert known.poll() is None
        listed = (tmp_path / "listed").open("w+b")
        command = ["flwr", "supernode", "list", federation.connection, "--format", "json"]
        assert ended(federation.popen(command, listed.fileno())) == 0
        nodes = json.loads((tmp_path / "listed").read_text())["nodes"]
        assert [node["status"] for node in nodes] == ["online"]


@pytest.mark.slow
def test_a_node_that_ends_stops_the_run_and_nothing_is_left(tmp_path, monkeypatch):
    """A node whose key is not registered: the error quotes what it said."""
    homes = []
    monkeypatch.setattr(Deployment, "register", lambda self, number: homes.append(self.home))
    app = write_app(tmp_path / "app", {"mark": uuid.uuid4().hex})
    with pytest.raises(FedefError, match="node 0 ended with"):
        deployed_run(app, run_config={}, num_supernodes=1, log_path=tmp_path / "log")
    assert processes_of(Path(homes[0])) == set()
    assert not Path(homes[0]).exists()
