"""Many rounds over TLS and gRPC on the loopback: memory and open files of every process stay flat.

::

    python -m sims.soak_nodes --rounds 300

A SuperLink and SuperNodes as on devices, with state on disk, train. After a twentieth of the
rounds, half of them and at the end it is written down what each process takes that lives as long
as the run, and how large the clients' states are. Before and after it the same nodes do empty
rounds: Flower's FedAvg with a model of one number.

A node starts a process for each message. The polynomial needs NumPy alone, so that a round beside
an empty one shows what fedef adds; with ``--problem digits-softmax`` torch, scikit-learn and
flwr-datasets are imported for each message too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from fedef.config import Config
from fedef.errors import FedefError
from fedef.run_folder import RunFolder
from fedef.service import Service
from sims.credentials import CONNECTION
from sims.deployment import Deployment
from sims.flower_engine import Value, require_written, run_command, write_app
from sims.processes import processes_of, temporary_home
from sims.soak import Sample, folder_bytes, growth, marks

DAEMONS = ("flower-superlink", "flower-superexec", "flower-supernode", "flwr-serverapp")
STATES = "states"
MARKS = 3
CONNECTIONS = 10
"""That the SuperLink may have more at the end; 38 became 41 open files in 300 rounds."""
EMPTY_ROUNDS = 10


@dataclass
class Soak:
    """What was seen."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """Of each process by its name, at the marks that it lived at; of the nodes' states likewise."""
    round_seconds: float = 0.0
    """Median over the rounds."""
    empty_seconds: float = 0.0
    """The same of the empty rounds."""


def soak(config: Config, log_path: Path) -> Soak:
    """Run it with a node for each client.

    Raises
    ------
    FedefError
        If a run fails.
    """
    seen, rounds, nodes = Soak(), config.num_rounds, config.num_clients
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_home() as home, log_path.open("wb") as log:
        folder, states = RunFolder(home / "run"), home / "states"
        waiting = list(marks(rounds))

        def tick() -> None:
            done = _lines(folder.rounds_path)
            if waiting and done >= min(waiting[0], rounds - 1):  # a run's processes end with it
                _sample(seen.samples, waiting.pop(0), home, states)

        federation = Deployment(home, log_path, log.fileno(), tick, None, num_nodes=nodes)
        federation.start_superlink()
        for number in range(nodes):
            federation.register(number)
            federation.start_node(number, f'state-dir="{states / str(number)}"')
        before = _empty_rounds(federation, nodes)
        service = Service.model_validate({"out": str(folder.path)})
        defaults: dict[str, Value] = {**config.to_flat(), **service.to_flat()}
        app = write_app(home / "app", defaults)
        federation.stream(run_command(app, home, defaults, CONNECTION))
        require_written(folder.summary_path, None, log_path)
        lines = folder.rounds_path.read_text(encoding="utf-8").splitlines()
        seconds = [json.loads(line)["seconds"] for line in lines]
        seen.round_seconds = median(seconds)
        seen.empty_seconds = median(before + _empty_rounds(federation, nodes))
    return seen


def _empty_rounds(federation: Deployment, nodes: int) -> list[float]:
    """Seconds of rounds of Flower's FedAvg, one number each way."""
    out = federation.home / "empty.json"
    out.unlink(missing_ok=True)
    config: dict[str, Value] = {
        "kind": "empty",
        "dimension": 1,
        "nodes": nodes,
        "rounds": EMPTY_ROUNDS,
        "out": str(out),
    }
    apps = {"serverapp": "sims.wire_app:server", "clientapp": "sims.wire_app:client"}
    app = write_app(federation.home / "empty", config, components=apps)
    federation.stream(run_command(app, federation.home, config, CONNECTION))
    require_written(out, None, federation.log_path)
    seconds: list[float] = json.loads(out.read_text(encoding="utf-8"))["seconds"]
    return seconds


def _sample(samples: dict[str, list[Sample]], round: int, home: Path, states: Path) -> None:
    """Look at every process that lives as long as the run, and at the clients' states."""
    for process in sorted(processes_of(home)):
        with suppress(psutil.Error):
            known = psutil.Process(process)
            name = next((d for d in DAEMONS if any(d in word for word in known.cmdline())), None)
            if name is not None:
                sample = Sample(round, known.memory_info().rss, known.num_fds(), 0)
                samples.setdefault(f"{name} {process}", []).append(sample)
    samples.setdefault(STATES, []).append(Sample(round, 0, 0, folder_bytes(states)))


def _lines(path: Path) -> int:
    with suppress(OSError):
        return path.read_bytes().count(b"\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the samples and the ratio of the rounds; exit status 1 if anything grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--problem", default="polynomial")
    parser.add_argument("--log", type=Path, default=Path("soak_nodes.log"))
    given = parser.parse_args(arguments)
    settings = {"problem": given.problem, "num-clients": given.nodes, "num-rounds": given.rounds}
    try:
        seen = soak(Config.from_flat(settings), given.log)
    except FedefError as error:
        sys.exit(f"error {error}")
    living = Counter(name.split()[0] for name, own in seen.samples.items() if len(own) == MARKS)
    wanted = {"flower-superlink": 1, "flwr-serverapp": 1, "flower-supernode": given.nodes}
    missing = [name for name, count in wanted.items() if living[name] != count]
    if missing:
        sys.exit(f"soak: {', '.join(missing)} did not live through the run; see {given.log}")
    print(f"after rounds {', '.join(map(str, marks(given.rounds)))}:")
    grew = []
    for name, samples in seen.samples.items():
        if len(samples) == MARKS:  # others lived for one message
            memory = " ".join(f"{sample.memory_bytes / 1e6:7.1f}" for sample in samples)
            files = " ".join(f"{sample.open_files:3}" for sample in samples)
            size = " ".join(f"{sample.folder_bytes / 1e3:7.1f}" for sample in samples)
            print(
                f"{name:25}", f"{size} kB" if name == STATES else f"{memory} MB {files} open files"
            )
            spare = CONNECTIONS if name.startswith("flower-superlink") else 0
            found = growth(samples[0], samples[-1], connections=spare)
            grew += [f"{name}: {what}" for what in found]
    print(
        f"a round takes {seen.round_seconds:.2f} s, an empty one {seen.empty_seconds:.2f} s: "
        f"{seen.round_seconds / seen.empty_seconds:.2f}"
    )
    if grew:
        sys.exit("grew:\n  " + "\n  ".join(grew))


if __name__ == "__main__":
    main()
