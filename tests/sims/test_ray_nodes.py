"""The Ray engine on a cluster of two nodes, one of which goes away."""

import os
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray_case import SETTINGS

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from sims.engine import InlineEngine
from sims.processes import HOME_VARIABLE, processes_of
from sims.ray_cluster import Resources, cluster
from sims.ray_engine import RaySettings
from sims.ray_tuning import TUNABLES

pytestmark = pytest.mark.slow
CONFIG = Config.from_flat({**SETTINGS, "participation": 1.0})


@pytest.fixture
def two_nodes():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_workers_on_two_nodes_give_inline_s_bits_and_survive_the_loss_of_one(two_nodes):
    """Two nodes of one core: a worker on each. A third node comes, the second one goes."""
    experiment, inline = Experiment.build(CONFIG), InlineEngine(Experiment.build(CONFIG))
    with RaySettings(workers=2, address=two_nodes.address).open(experiment, None) as engine:
        assert ray.available_resources().get("CPU", 0) == 0  # both nodes are taken
        for _ in range(3):
            inline.round(), engine.round()
        _head, second = two_nodes.list_all_nodes()
        two_nodes.add_node(num_cpus=1)
        two_nodes.remove_node(second, allow_graceful=False)
        for _ in range(3):
            inline.round(), engine.round()
        assert engine.server.x.tobytes() == inline.server.x.tobytes()
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:many"])
def test_an_address_without_a_cluster_is_an_error(address):
    with (
        pytest.raises(ConfigError, match=f"ray-address: no Ray cluster at '{address}'"),
        RaySettings(address=address).open(Experiment.build(CONFIG), None),
    ):
        pass


def test_a_ray_of_our_own_listens_on_the_loopback_alone_and_leaves_nothing(monkeypatch):
    """Ray asks nobody for a password: whoever reaches a port of it can run code."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")  # the user's word is the last
    with cluster("", Resources(), 1):
        tunables = ray.get(ray.remote(os.getenv).remote("GLIBC_TUNABLES"))
        assert tunables == f"{TUNABLES}:glibc.malloc.hugetlb=0"
        home = Path(os.environ[HOME_VARIABLE])
        processes = processes_of(home) | {os.getpid()}
        listening = {
            connection.laddr.ip
            for process in processes
            for connection in psutil.Process(process).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert len(processes) > 3
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert not home.exists()
    assert not processes_of(home)
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"
