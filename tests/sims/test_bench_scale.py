"""The benchmarks of scale run on small settings and say what they compare."""

import pytest

from fedef.errors import ConfigError, FedefError
from sims.bench import GROUPS, run_benchmarks
from sims.bench_command import bench_command
from sims.bench_scale import clients_not_asked, server_rounds, tiny_clients
from sims.bench_table import WARM_UP, Row, compare


def test_each_compares_what_it_says():
    rows = [
        *tiny_clients(turns=1, num_clients=12, rows=3),
        *clients_not_asked(turns=1, many=400, few=200),
        *server_rounds(turns=1, participants=(2, 4)),
    ]
    assert [row.asked for row in rows] == [1 / 8, 1.0, 1.1, 1.0, 1.1, 1.1]
    for row in rows:
        ours, beside = (float(shown.split()[0]) for shown in (row.ours, row.beside))
        assert min(ours, beside) > 0
        if "the server's round" not in row.what or "memory" in row.what:  # medians of one turn
            rounding = 0.006 / ours + 0.006 / beside  # of what is shown
            assert row.ratio == pytest.approx(ours / beside, rel=rounding)
    assert "gradients of 12 clients with 3 rows together / one by one, d=650" in rows[0].what
    assert "100 of 400 clients / of 200, d=7850" in rows[2].what
    assert "of 400 clients with a state" in rows[3].what
    assert "4 participants / 2 with 2" in rows[4].what


def test_a_row_is_of_the_medians_and_of_the_median_ratio(monkeypatch):
    """Turns of (8, 2), (1, 1) and (3, 6) seconds, after a warm-up that does not count."""
    seconds = [9.0] * (2 * WARM_UP) + [8.0, 2.0, 1.0, 1.0, 3.0, 6.0]
    monkeypatch.setattr("sims.bench_table._seconds", lambda call: seconds.pop(0))
    found = compare(lambda: None, lambda: None, turns=3)
    assert found == (3.0, 2.0, 1.0)
    row = Row.of_seconds("a / b", found, asked=1.2)
    assert (row.what, row.ours, row.beside, row.ratio) == ("a / b", "3000.00 ms", "2000.00 ms", 1.0)


def test_the_memory_of_the_servers_round_grows_no_faster_than_its_participants():
    """Bytes, not seconds: the same on every machine, busy or not."""
    memory = [row for row in server_rounds(turns=1, participants=(50, 200)) if "memory" in row.what]
    assert memory[0].ratio < 1.1


def test_an_unknown_group_is_an_error():
    assert set(GROUPS) == {"core", "ray", "rounds", "tiny", "clients", "server"}
    with pytest.raises(ConfigError, match="only: must be one of core, .*, got 'fast'"):
        next(run_benchmarks(turns=1, only="fast"))


def test_a_benchmark_that_fails_has_shown_what_it_had_measured(monkeypatch, capsys):
    def failing(**options):
        yield Row("one / other", "1.00 ms", "2.00 ms", 0.5, asked=0.62)
        raise FedefError("benchmark: pfl-fedavg failed")

    monkeypatch.setattr("sims.bench.run_benchmarks", failing)
    with pytest.raises(FedefError, match="pfl-fedavg failed"):
        bench_command(turns=1)
    shown = capsys.readouterr().out
    assert "one / other" in shown
    assert "0.500" in shown
