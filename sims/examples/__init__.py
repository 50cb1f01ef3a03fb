"""Short scripts on ``from sims import sweep``: read them, copy them, run them by ``python -m``."""
