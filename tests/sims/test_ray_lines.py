"""Lines to workers: answers, failures, hang-ups, and who has none. The worker is a thread here."""

import os
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from sims.ray_lines import SHARED_BYTES, Line, Lines, dial


@pytest.fixture
def lines():
    opened = Lines(3)
    yield opened
    opened.close()


def connect(lines, worker, work):
    assert dial(lines.address, worker, work)
    lines.accept()


def test_orders_go_out_and_answers_come_back_with_the_worker_they_are_of(lines):
    for worker in (0, 2, 5):
        connect(lines, worker, lambda order, worker=worker: (worker, order * 2))
    assert all(worker in lines for worker in (0, 2, 5))
    assert 1 not in lines
    for payload in (b"x", b"y" * 10**6, b"z" * SHARED_BYTES, b"short again"):
        for worker in (0, 5):
            lines.send(worker, payload)
        assert dict(lines.answers([0, 5])) == {0: (0, payload * 2), 5: (5, payload * 2)}
    assert dict(lines.answers([])) == {}


def test_answers_come_in_the_order_in_which_they_are_ready(lines):
    release = threading.Event()
    connect(lines, 0, lambda order: release.wait(30))
    connect(lines, 1, lambda order: order)
    for worker in (0, 1):
        lines.send(worker, "now")
    answers = lines.answers([0, 1])
    assert next(answers) == (1, "now")
    release.set()
    assert list(answers) == [(0, True)]


def test_an_order_that_fails_is_answered_by_none_and_the_next_one_is_done(lines):
    connect(lines, 0, lambda order: 1 // order)
    for order, answer in ((1, 1), (0, None), (1, 1)):
        lines.send(0, order)
        assert list(lines.answers([0])) == [(0, answer)]


@pytest.mark.parametrize("before", [True, False], ids=["before the order", "after it"])
def test_a_worker_that_is_gone_has_no_answer_and_then_no_line(lines, before):
    worker = Line.to(lines.address, 0)
    lines.accept()
    if before:
        worker.close()
    lines.send(0, "now")
    worker.close()
    assert list(lines.answers([0])) == [(0, None)]
    assert 0 not in lines


@pytest.mark.parametrize("begun", [True, False], ids=["one is heard", "none is heard"])
def test_an_answer_that_nobody_heard_is_not_taken_for_the_next_one(lines, begun):
    """The listener stops before the second answer, or before the first: that line is given up."""
    for worker in (0, 1):
        connect(lines, worker, lambda order: order)
    lines.send(0, "first")
    if begun:
        assert list(lines.answers([0])) == [(0, "first")]
    lines.send(1, "first")
    for worker in (0, 1):
        lines.send(worker, "second")
    heard = dict(lines.answers([0, 1]))
    assert heard == {0: "second" if begun else None, 1: None}
    assert (0 in lines, 1 in lines) == (begun, False)


def test_where_there_is_no_memory_to_share_there_is_no_line_and_nothing_stays_open(
    lines, monkeypatch
):
    def refuse(*_):
        raise OSError("no memory")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as without:
        without.setattr("sims.ray_lines.mmap.mmap", refuse)
        assert not dial(lines.address, 0, lambda order: order)
    assert len(os.listdir("/proc/self/fd")) == before
    connect(lines, 1, lambda order: order)
    assert (0 in lines, 1 in lines) == (False, True)


def test_the_line_of_a_worker_that_took_a_dead_one_s_place_is_the_new_one(lines):
    """Both have called before the driver looks; the first is dead by then."""
    Line.to(lines.address, 0).close()
    connect(lines, 0, lambda order: order)
    lines.send(0, "now")
    assert list(lines.answers([0])) == [(0, "now")]


def test_a_call_that_brings_no_memory_is_no_line(lines):
    """As a worker that dies before it has said who it is."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(lines.address)
        caller.sendall(bytes(8))
        lines.accept()
    assert 0 not in lines


def test_a_thread_that_serves_does_not_preempt_the_driver(lines):
    connect(lines, 0, lambda order: os.sched_getscheduler(0))
    lines.send(0, "now")
    assert list(lines.answers([0])) == [(0, os.SCHED_BATCH)]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_only_this_user_can_enter_the_folder_which_goes_with_the_lines():
    lines = Lines(1)
    folder = Path(lines.address).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(os.stat(lines.address).st_mode)
    lines.close()
    assert not folder.exists()


def test_who_cannot_reach_the_socket_has_no_line(tmp_path):
    assert not dial(str(tmp_path / "nobody"), 0, lambda order: order)


def test_a_path_that_is_too_long_for_a_socket_means_no_lines(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    lines = Lines(1)
    reached = dial(lines.address, 0, lambda order: order)
    lines.accept()
    assert not reached
    assert 0 not in lines
    lines.close()
    assert not list(deep.iterdir())
