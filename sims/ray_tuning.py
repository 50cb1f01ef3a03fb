"""Settings of Ray's own processes, for the Ray that we start and the one that Flower starts."""

from __future__ import annotations

TUNED: dict[str, int] = {
    "worker_niceness": 0,  # with Ray's 15, any other work on the machine holds up a round
    "max_direct_call_object_size": 2**20,  # up to it what is passed goes with the call itself
}
TUNED_ENVIRONMENT = {f"RAY_{name}": str(value) for name, value in TUNED.items()}
"""The same for a Ray that another program starts: Flower's simulation takes a quarter less time."""
TUNABLES = "glibc.malloc.hugetlb=1"
"""Of the C library in Ray's processes: states and data of many clients in pages of 2 MiB, where the
system gives them to those who ask; some percent of a round. It counts from a process's start."""
