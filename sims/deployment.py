"""A Flower app on a real federation: SuperLink and SuperNodes of this machine, over gRPC.

TLS and node keys, as on devices; only the loopback stands for the network.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from fedef.errors import FedefError
from sims.credentials import CONNECTION, Credentials, Ports
from sims.flower_engine import (
    NO_VARIABLES,
    FlowerRun,
    Value,
    free_port,
    require_written,
    run_command,
    written_at,
)
from sims.processes import temporary_home

_CREDENTIALS = "credentials"


def _ignore(step: str) -> None:
    pass


class Deployment(FlowerRun):
    """The processes of one federation; whoever made its home stops what is left of them.

    Parameters
    ----------
    home, log_path, log, on_tick, timeout_seconds
        As for `FlowerRun`.
    num_nodes
        SuperNodes.
    """

    connection = CONNECTION

    def __init__(
        self,
        home: Path,
        log_path: Path,
        log: int,
        on_tick: Callable[[], None],
        timeout_seconds: float | None,
        *,
        num_nodes: int,
    ) -> None:
        super().__init__(home, log_path, log, on_tick, timeout_seconds)
        self.credentials = Credentials.create(
            home / _CREDENTIALS,
            num_nodes=num_nodes,
            host="127.0.0.1",
            ports=Ports(fleet=free_port(), control=free_port()),
        )
        (home / "config.toml").write_bytes((self.credentials.folder / "config.toml").read_bytes())
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.superlink: subprocess.Popen[bytes] | None = None

    def start_superlink(self) -> None:
        """Start the SuperLink, or start it again on the same database."""
        command = self.credentials.superlink_command()
        self.superlink = self.launch_superlink(command, self.credentials.ports.control)

    def register(self, number: int) -> None:
        """Authorise a node's key.

        Raises
        ------
        FedefError
            If the SuperLink refuses it.
        """
        with (self.home / "register.log").open("w+b") as output:
            process = self.popen(self.credentials.register_command(number), output.fileno())
            while process.poll() is None:
                self.tick(0.05)
            output.seek(0)
            answer = output.read().decode(errors="replace")
        if process.returncode != 0 or "registered successfully" not in answer:
            raise FedefError(f"node {number} could not be registered: {answer.strip()}")

    def start_node(
        self,
        number: int,
        settings: str = "",
        *,
        through: int | None = None,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> subprocess.Popen[bytes]:
        """Start a node in its own folder, which is all that it knows, and its own `settings`.

        `through`: port of the loopback at which it reaches the SuperLink; None: directly.
        `variables`: more of its environment.
        """
        command = self.credentials.supernode_command(number, settings)
        if through is not None:
            command[command.index("--superlink") + 1] = f"127.0.0.1:{through}"
        command += ["--port", str(free_port())]
        with self.node_log(number).open("ab") as output:
            process = self.popen(
                command,
                output.fileno(),
                folder=self.credentials.node(number),
                variables=variables,
            )
        self.nodes[number] = process
        return process

    def node_log(self, number: int) -> Path:
        """What a node printed."""
        return self.home / f"node-{number}.log"


def deployed_run(
    app: Path,
    *,
    run_config: Mapping[str, Value],
    num_supernodes: int,
    log_path: Path,
    result_path: Path | None = None,
    on_tick: Callable[[], None] = lambda: None,
    on_step: Callable[[str], None] = _ignore,
    timeout_seconds: float | None = None,
) -> None:
    """Run a Flower app on a federation with TLS and node keys, to its end, or raise.

    Parameters
    ----------
    app, run_config, num_supernodes, log_path, result_path, on_tick, timeout_seconds
        As for `sims.flower_engine.flwr_run`.
    on_step
        Told what is being done before the first round.

    Raises
    ------
    FedefError
        If the run did not complete, or a node ended before it.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    before = written_at(result_path)
    with temporary_home() as home, log_path.open("wb") as log:

        def tick() -> None:
            for number, node in deployment.nodes.items():
                if node.poll() is not None:
                    end = deployment.node_log(number).read_text(errors="replace")[-2000:]
                    raise FedefError(f"node {number} ended with {node.returncode}: {end}")
            on_tick()

        on_step("certificates and keys")
        deployment = Deployment(
            home, log_path, log.fileno(), tick, timeout_seconds, num_nodes=num_supernodes
        )
        on_step("SuperLink, with TLS")
        deployment.start_superlink()
        for number in range(num_supernodes):
            on_step(f"node {number + 1} of {num_supernodes}, with its key")
            deployment.register(number)
            deployment.start_node(number)
        on_step("flwr run")
        deployment.stream(run_command(app, home, run_config, CONNECTION))
        deployment.check_status()
    require_written(result_path, before, log_path)
