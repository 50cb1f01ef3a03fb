"""Freed arrays are reused: the second one finds its pages there."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from fedef.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        np.ones(200_000)  # 1.6 MB, 391 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told")
def test_an_array_takes_the_pages_of_the_last_one():
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) < 400  # of 39,100 if each array had fresh ones
