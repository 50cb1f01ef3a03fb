"""One thread for linear algebra, in libraries that are loaded inside the block too."""

import json
import subprocess
import sys

import numpy as np  # noqa: F401 - brings a library to limit
from threadpoolctl import threadpool_info

from fedef.threads import limit_what_was_loaded, single_threaded

PROGRAM = """
import json
from threadpoolctl import threadpool_info
from fedef.config import Config
from fedef.experiment import Experiment
from fedef.threads import single_threaded
before = len(threadpool_info())
with single_threaded():
    settings = {"problem": "logistic", "data": "breast_cancer", "partitioner": "iid"}
    Experiment.build(Config.from_flat(settings))
    inside = [library["num_threads"] for library in threadpool_info()]
print(json.dumps([before, inside]))
"""


def test_libraries_that_a_problem_loads_are_limited_too():
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    before, inside = json.loads(told.stdout)
    assert len(inside) > before  # SciPy and scikit-learn bring their own
    assert set(inside) == {1}


def test_the_limits_end_with_the_block():
    threads = [library["num_threads"] for library in threadpool_info()]
    with single_threaded():
        limit_what_was_loaded()
        assert {library["num_threads"] for library in threadpool_info()} == {1}
    assert [library["num_threads"] for library in threadpool_info()] == threads
