"""The command line of the fault harness."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import sims.faults
from fedef.config import Config
from fedef.errors import FedefError
from sims.faults.federation import FaultyFederation
from sims.faults.plan import Faults


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends non-zero where the invariant or the bits do not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m sims.faults",
        description=sims.faults.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    for name, default, text in (
        ("node-kills", 2, "SIGKILLs of SuperNodes"),
        ("server-kills", 2, "of the ServerApp, each second time with the SuperLink"),
        ("full-disks", 0, "nodes whose disk is full for some rounds; needs root"),
        ("clock-moves", 0, "nodes whose clock is wrong for some rounds"),
        ("message-faults", 0.0, "share of messages that are lost, late, doubled, changed"),
        ("wire-faults", 0.0, "share of pieces of connections that are late, cut, changed"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    parser.add_argument("--rounds", type=int, default=10, help="at least, before the calm ones")
    parser.add_argument("--problem", default=Config().problem, help="what is trained meanwhile")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    given = parser.parse_args(arguments)
    chosen = {"num-clients": given.nodes, "num-rounds": given.rounds, "seed": given.seed}
    for name in ("node_kills", "server_kills", "full_disks", "clock_moves"):
        if getattr(given, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative")
    for name in ("message_faults", "wire_faults"):
        if not 0 <= getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is a share: at least 0 and below 1")
    faults = Faults(**{of.name: getattr(given, of.name) for of in fields(Faults)})
    try:
        config = Config.from_flat({**chosen, "problem": given.problem})
        tally = FaultyFederation(config, given.out, faults, partial(print, flush=True)).run()
    except FedefError as error:
        sys.exit(f"error {error}")
    print(json.dumps(vars(tally), indent=1))


if __name__ == "__main__":
    main()
