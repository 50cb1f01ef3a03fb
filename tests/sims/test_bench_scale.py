"""The benchmarks of scale run on small settings and say what they compare."""

import pytest

from fedef.errors import ConfigError
from sims.bench import GROUPS, run_benchmarks
from sims.bench_scale import clients_not_asked, server_rounds, tiny_clients


def test_each_compares_what_it_says():
    rows = [
        *tiny_clients(turns=1, num_clients=12, rows=3),
        *clients_not_asked(turns=1, many=400, few=200),
        *server_rounds(turns=1, participants=(2, 4)),
    ]
    assert [row.asked for row in rows] == [1 / 8, 1.0, 1.1, 1.0, 1.1, 1.1]
    assert all(row.ratio > 0 for row in rows)
    assert "gradients of 12 clients with 3 rows together / one by one, d=650" in rows[0].what
    assert "100 of 400 clients / of 200, d=7850" in rows[2].what
    assert "of 400 clients with a state" in rows[3].what
    assert "4 participants / 2 with 2" in rows[4].what


def test_the_memory_of_the_servers_round_grows_no_faster_than_its_participants():
    """Bytes, not seconds: the same on every machine, busy or not."""
    memory = [row for row in server_rounds(turns=1, participants=(50, 200)) if "memory" in row.what]
    assert memory[0].ratio < 1.1


def test_an_unknown_group_is_an_error():
    assert set(GROUPS) == {"core", "rounds", "tiny", "clients", "server"}
    with pytest.raises(ConfigError, match="only: must be one of core, .*, got 'fast'"):
        next(run_benchmarks(turns=1, only="fast"))
