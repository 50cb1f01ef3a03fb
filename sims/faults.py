"""A federation on the loopback whose processes are killed at random moments.

    python -m sims.faults --node-kills 30 --server-kills 10

TLS and node keys as on devices. SuperNodes, the ServerApp and the SuperLink get SIGKILL, by their
process IDs, somewhere in a round; nodes are started again on their disks, the run is resumed from
its folder. After each round the states on disk are compared:

    g = sum_i w_i g_i / sum_i w_i

with g_i what client i's file holds, up to the declared pending update. At the end the run is done
again inline with exactly the replies lost that it lost: the same bits, or an update was lost or
applied twice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedef.checkpoint import Checkpoint, read_checkpoint
from fedef.client_store import ClientStore
from fedef.config import Config
from fedef.errors import FedefError
from fedef.experiment import Experiment
from fedef.messages import Reply
from fedef.randomness import stream
from fedef.recorder import model_sha256
from fedef.run_folder import RunFolder
from fedef.service import Service
from fedef.state import NO_DIGEST, ClientRecord
from sims.credentials import CONNECTION
from sims.deployment import Deployment
from sims.engine import InlineEngine
from sims.flower_engine import run_command, write_app
from sims.processes import processes_of, temporary_home

NODE, SERVER_APP, SUPERLINK = "node", "server-app", "superlink"
RESTART_SECONDS = 5.0
"""Between two starts of a node: a killed one is refused for up to a minute."""


@dataclass
class Tally:
    """What happened."""

    kills: dict[str, int] = field(default_factory=lambda: {NODE: 0, SERVER_APP: 0, SUPERLINK: 0})
    node_starts: int = 0
    submissions: int = 0
    rounds_checked: int = 0
    largest_error: float = 0.0
    """max |g - weighted mean of the clients' g_i| over all checks, relative to max |g|."""
    lost_replies: int = 0
    same_bits: bool = False
    """Whether the inline run with the same losses ends in the same model."""
    seconds: float = 0.0


class FaultyFederation:
    """One run and the hand that kills its processes.

    Parameters
    ----------
    config
        What is run; it goes on for two rounds more than there are kills.
    out
        The run's folder.
    victims
        Kinds of processes, in the order in which they are killed, one in a round at most.
    say
        Told what happens.
    """

    def __init__(
        self, config: Config, out: Path, victims: Sequence[str], say: Callable[[str], None]
    ) -> None:
        rounds = len(victims) + 2
        self._config = Config.from_flat({**config.to_flat(), "num-rounds": rounds})
        self._experiment = Experiment.build(self._config)
        self._folder, self._victims, self._say = RunFolder(out.resolve()), list(victims), say
        self._draws = stream(config.seed, "faults")
        self._tally = Tally()
        self._seen, self._round_began, self._kill_at = 0, time.monotonic(), float("inf")
        self._node_died: dict[int, float] = {}

    def run(self) -> Tally:
        """Run to the end.

        Raises
        ------
        FedefError
            If the invariant does not hold, or the run does not end.
        """
        began, n = time.monotonic(), self._experiment.num_clients
        log_path = self._folder.path.with_name(f"{self._folder.path.name}.log")
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_home() as home, log_path.open("wb") as log:
            self._home, self._states = home, home / "states"
            defaults = {**self._config.to_flat(), **Service().to_flat()}
            self._app, self._log = write_app(home / "app", defaults), log.fileno()
            self._federation = Deployment(
                home, log_path, log.fileno(), lambda: None, None, num_nodes=n
            )
            self._federation.start_superlink()
            for number in range(n):
                self._federation.register(number)
                self._start_node(number)
            self._submit()
            limit = began + 180.0 * (self._config.num_rounds + 2)
            while not self._folder.summary_path.exists():
                if time.monotonic() > limit:
                    raise FedefError(f"the run does not end; its log: {log_path}")
                self._tick()
                time.sleep(0.2)
            self._check(*self._states_on_disk())
            self._compare()
        self._tally.seconds = time.monotonic() - began
        return self._tally

    def _tick(self) -> None:
        for number, node in list(self._federation.nodes.items()):
            if node.poll() is None:
                continue
            died = self._node_died.setdefault(number, time.monotonic())
            if time.monotonic() > died + RESTART_SECONDS:
                self._start_node(number)
        if self._run.poll() is not None and not self._folder.summary_path.exists():
            self._say("the run ended early")
            self._submit()
        rounds = self._rounds()
        self._seen = min(self._seen, rounds)  # a resumed run repeats what had no checkpoint
        if rounds > self._seen:
            self._seen = rounds
            self._check(*self._states_on_disk())
            took = time.monotonic() - self._round_began
            self._round_began = time.monotonic()
            if self._victims and self._kill_at == float("inf"):
                self._kill_at = time.monotonic() + float(self._draws.uniform(0.0, min(took, 10.0)))
        if self._victims and time.monotonic() > self._kill_at:
            killed = self._kill(self._victims[0])
            self._kill_at = float("inf") if killed else time.monotonic() + RESTART_SECONDS
            if killed:
                self._victims.pop(0)

    def _rounds(self) -> int:
        with suppress(OSError):
            return self._folder.rounds_path.read_bytes().count(b"\n")
        return 0

    def _start_node(self, number: int) -> None:
        self._node_died.pop(number, None)
        self._tally.node_starts += 1
        self._federation.start_node(number, f'state-dir="{self._states / str(number)}"')

    def _submit(self) -> None:
        """Start the run, or go on with it from its folder."""
        self._tally.submissions += 1
        if self._tally.submissions > 3 * (
            sum(self._tally.kills.values()) + self._config.num_rounds
        ):
            raise FedefError("the run ends early again and again")
        key = "resume" if self._folder.checkpoint_path.exists() else "out"
        service = Service.model_validate({key: str(self._folder.path)}).to_flat()
        run_config = {**self._config.to_flat(), **service}
        command = run_command(self._app, self._home, run_config, CONNECTION)
        self._run = self._federation.popen(command, self._log)

    def _kill(self, kind: str) -> bool:
        """Kill a process of a kind; False: there is none that lives."""
        if kind == NODE:
            nodes = self._federation.nodes
            living = [number for number, node in sorted(nodes.items()) if node.poll() is None]
            if living:
                nodes[int(self._draws.choice(living))].kill()
                self._count(kind)
            return bool(living)
        servers = [process for process in processes_of(self._home) if _is_server_app(process)]
        superlink = self._federation.superlink
        if superlink is None or (kind == SERVER_APP and not servers):
            return False
        self._count(kind)
        if kind == SUPERLINK:
            superlink.kill()
            superlink.wait()
        for process in servers:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._run.kill()
        self._run.wait()
        if kind == SUPERLINK:
            self._federation.start_superlink()
        self._submit()
        return True

    def _count(self, kind: str) -> None:
        self._tally.kills[kind] += 1
        self._say(f"round {self._seen + 1}: kill {kind} {sum(self._tally.kills.values())}")

    def _states_on_disk(self) -> tuple[Checkpoint, list[tuple[ClientRecord, Any]]]:
        """The server's checkpoint, and of each client what the server holds of it."""
        for _ in range(50):
            checkpoint = read_checkpoint(self._folder.checkpoint_path, experiment=self._experiment)
            held = []
            for client in range(self._experiment.num_clients):
                record = checkpoint.server.records.get(client, ClientRecord(0, NO_DIGEST))
                store = ClientStore(
                    self._states / str(client), token=checkpoint.token, client=client
                )
                held.append((record, store.load()))
            again = read_checkpoint(self._folder.checkpoint_path, experiment=self._experiment)
            if again.server.round == checkpoint.server.round:
                return checkpoint, held
        raise FedefError("the checkpoint changes faster than it can be read")

    def _check(self, checkpoint: Checkpoint, held: list[tuple[ClientRecord, Any]]) -> None:
        """G = weighted mean of the clients' g_i.

        Raises
        ------
        FedefError
            If it is not.
        """
        server = checkpoint.server
        weights = checkpoint.weights or self._experiment.weights
        total = np.zeros_like(server.total)
        for weight, (record, state) in zip(weights, held, strict=True):
            if state is None:
                if record.version:
                    raise FedefError("a client lost the state that the server holds of it")
                continue
            settled = state.settled(record.version, record.digest)  # StateMismatch: neither holds
            total += weight * settled.g.astype(np.float64)
        scale = float(np.max(np.abs(server.total), initial=0.0)) or 1.0
        error = float(np.max(np.abs(total - server.total), initial=0.0)) / scale
        self._tally.rounds_checked += 1
        self._tally.largest_error = max(self._tally.largest_error, error)
        if error > 1e-5:
            raise FedefError(
                f"round {server.round}: the server's g is not the mean of the clients' g_i, "
                f"relative error {error:.3g}"
            )

    def _compare(self) -> None:
        """Do the run again inline, losing the replies that were lost here."""
        lines = [json.loads(line) for line in self._folder.rounds_path.read_text().splitlines()]
        engine = InlineEngine(self._experiment)
        for line in lines:
            lost = set(line["missing"])
            self._tally.lost_replies += len(lost)

            def network(replies: list[Reply], lost: set[int] = lost) -> list[Reply]:
                return [reply for reply in replies if reply.client not in lost]

            engine.round(network=network)
        summary = json.loads(self._folder.summary_path.read_text())
        self._tally.same_bits = model_sha256(engine.server.x) == summary["model-sha256"]
        if not self._tally.same_bits:
            raise FedefError(
                "the model differs from that of the inline run with the same losses: an update "
                "was lost or applied twice"
            )


def _is_server_app(process: int) -> bool:
    with suppress(OSError):
        return b"flwr-serverapp" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def victims(node_kills: int, server_kills: int, seed: int) -> list[str]:
    """Who is killed, in an order that the seed draws; servers are each second time a SuperLink."""
    servers = [SERVER_APP if number % 2 == 0 else SUPERLINK for number in range(server_kills)]
    kinds = [*[NODE] * node_kills, *servers]
    return [kinds[place] for place in stream(seed, "victims").permutation(len(kinds))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends non-zero where the invariant or the bits do not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--node-kills", type=int, default=2)
    parser.add_argument("--server-kills", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    given = parser.parse_args(arguments)
    config = Config.from_flat({"num-clients": given.nodes, "seed": given.seed})
    kills = victims(given.node_kills, given.server_kills, given.seed)
    try:
        tally = FaultyFederation(config, given.out, kills, partial(print, flush=True)).run()
    except FedefError as error:
        sys.exit(f"error {error}")
    print(json.dumps(vars(tally), indent=1))


if __name__ == "__main__":
    main()
