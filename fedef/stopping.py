"""When a run ends before its last round: once a target is reached or a budget is spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedef.config import Config

LAST_ROUND = "num-rounds"
"""What `stop_rule` says of a run whose rounds are all done."""


def stop_rule(config: Config, line: Mapping[str, Any], *, uplink_bytes: int) -> str | None:
    """Key of the rule that ends the run after a round, or None: it goes on.

    Parameters
    ----------
    config
        With the rules; those on the accuracy and the gradient norm see evaluated rounds alone.
    line
        The round's line in rounds.jsonl.
    uplink_bytes
        Sent by all clients in all rounds so far.
    """
    accuracy, gradient_norm = line["test-accuracy"], line["grad-norm"]
    holds = {
        "stop-accuracy": _at_least(accuracy, config.stop_accuracy),
        "stop-gradient-norm": _at_least(config.stop_gradient_norm, gradient_norm),
        "stop-uplink-bytes": _at_least(uplink_bytes, config.stop_uplink_bytes),
        LAST_ROUND: line["round"] >= config.num_rounds,
    }
    return next((key for key, reached in holds.items() if reached), None)


def _at_least(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value >= bound
