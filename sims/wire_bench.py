"""Bytes on the wire and seconds of a round over gRPC and TLS, fedef beside Flower's FedAvg.

    python -m sims.wire_bench --dimensions 100000 10000000

One SuperNode reaches its SuperLink through a proxy that counts. The same app is run with FedAvg on
a model of one number (an empty round), with FedAvg on d numbers, and with error feedback at 1 %
top-k. Bytes are those of a whole run over its rounds: TLS, HTTP/2, gRPC, Flower's envelope, the
node's questions for work and its heartbeats.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sims.counting_proxy import counting
from sims.credentials import CONNECTION
from sims.deployment import Deployment
from sims.flower_compat import GRPC
from sims.flower_engine import Value, require_written, run_command, write_app
from sims.processes import temporary_home


@dataclass(frozen=True)
class Row:
    """One kind of run."""

    kind: str
    """empty, fedavg or fedef."""
    dimension: int
    uplink_bytes: float
    """Bytes from the node in a round, at the socket."""
    downlink_bytes: float
    payload_bytes: float
    """Encoded updates in a round; 0 where nothing of ours is sent."""
    round_seconds: float
    """Median over the rounds."""


def measure(kinds: Sequence[tuple[str, int]], *, rounds: int, log_path: Path) -> list[Row]:
    """Run each (kind, d) on one federation.

    Raises
    ------
    FedefError
        If a run fails.
    """
    rows = []
    with temporary_home() as home, log_path.open("wb") as log:
        federation = Deployment(home, log_path, log.fileno(), lambda: None, None, num_nodes=1)
        federation.start_superlink()
        ports = federation.credentials.ports
        with counting(ports.fleet if GRPC else ports.control) as proxy:
            federation.register(0)
            federation.start_node(0, through=proxy.port)
            for kind, dimension in kinds:
                out = home / f"{kind}-{dimension}.json"
                config: dict[str, Value] = {
                    "kind": kind,
                    "dimension": dimension,
                    "nodes": 1,
                    "rounds": rounds,
                    "out": str(out),
                }
                apps = {"serverapp": "sims.wire_app:server", "clientapp": "sims.wire_app:client"}
                app = write_app(home / "app", config, components=apps)
                before = proxy.sent, proxy.received
                federation.stream(run_command(app, home, config, CONNECTION))
                sent, received = proxy.sent - before[0], proxy.received - before[1]
                require_written(out, None, log_path)
                told = json.loads(out.read_text(encoding="utf-8"))
                payload = told["payload"] / rounds
                seconds = median(told["seconds"])
                rows.append(
                    Row(kind, dimension, sent / rounds, received / rounds, payload, seconds)
                )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each run, and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dimensions", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--log", type=Path, default=Path("wire_bench.log"))
    given = parser.parse_args(arguments)
    if given.rounds < 2 or min(given.dimensions) < 1:
        parser.error(
            "--rounds must be at least 2, since a round's time is between two ends, and "
            "each of --dimensions at least 1"
        )
    kinds = [("empty", 1)]
    kinds += [(kind, d) for d in given.dimensions for kind in ("fedavg", "fedef")]
    rows = measure(kinds, rounds=given.rounds, log_path=given.log)
    for row in rows:
        print(json.dumps(vars(row)))
    empty = rows[0]
    for dense, ours in zip(rows[1::2], rows[2::2], strict=True):
        print(
            f"d={ours.dimension}: uplink {dense.uplink_bytes / ours.uplink_bytes:.1f} times less "
            "than FedAvg at the socket; a round takes "
            f"{ours.round_seconds / empty.round_seconds:.2f} of an empty one"
        )


if __name__ == "__main__":
    main()
