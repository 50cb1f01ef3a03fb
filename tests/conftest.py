"""What all tests share: hypothesis draws the same examples on every machine, without a clock."""

from hypothesis import settings

settings.register_profile("fedef", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("fedef")
