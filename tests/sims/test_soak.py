"""The soak on small settings, and that it sees what it is there to see."""

import subprocess
import sys
from dataclasses import replace

import pytest

from fedef.config import Config
from sims import soak_nodes
from sims.soak import Sample, growth, soak


def test_a_short_soak_is_flat(tmp_path):
    first, middle, last = soak(40, tmp_path)
    assert [first.round, middle.round, last.round] == [2, 20, 40]
    assert growth(first, last) == []
    assert last.folder_bytes < 20_000


def test_growth_is_told():
    start = Sample(1, 100_000_000, 5, 1000)
    assert growth(start, start) == []
    assert growth(start, replace(start, memory_bytes=120_000_000)) == ["memory by 20.0 MB"]
    assert growth(start, replace(start, open_files=6)) == ["open files from 5 to 6"]
    assert growth(start, replace(start, open_files=6), connections=1) == []
    assert growth(start, replace(start, open_files=7), connections=1) != []
    assert growth(start, replace(start, folder_bytes=2001)) == [
        "the folder from 1000 to 2001 bytes"
    ]


def test_the_command_prints_start_middle_and_end(tmp_path):
    command = [sys.executable, "-m", "sims.soak", "--rounds", "10", "--folder", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 4


@pytest.mark.slow
def test_a_soak_over_grpc_sees_every_process(tmp_path):
    config = Config.from_flat({"problem": "polynomial", "num-clients": 2, "num-rounds": 4})
    seen = soak_nodes.soak(config, tmp_path / "soak.log")
    names = [name.split()[0] for name, samples in seen.samples.items() if len(samples) == 3]
    assert names.count("flower-supernode") == 2
    assert {"flower-superlink", "flwr-serverapp", soak_nodes.STATES} <= set(names)
    for name, samples in seen.samples.items():
        if len(samples) == 3 and name != soak_nodes.STATES:
            assert samples[0].memory_bytes > 1_000_000, name
            assert samples[0].open_files > 2, name
    assert seen.samples[soak_nodes.STATES][-1].folder_bytes > 0
    assert min(seen.empty_seconds, seen.round_seconds) > 0
