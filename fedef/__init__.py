"""fedef: federated learning with normalized error feedback."""

from fedef.guard import ensure_ours

__all__ = ["ensure_ours"]
