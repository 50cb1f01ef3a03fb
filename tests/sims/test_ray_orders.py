"""Orders of past rounds: the same again, wherever their models are held."""

import mmap

import pytest
import ray

import sims.ray_orders
from sims.ray_orders import Order, PastOrders


@pytest.fixture
def store(monkeypatch):
    """An object store of our own."""
    held = []
    monkeypatch.setattr(sims.ray_orders.ray, "put", lambda data: held.append(data) or reference())
    return held


def reference():
    return ray.ObjectRef(b"x" * 28, skip_adding_local_ref=True)


def orders(n, *, size=100):
    return [
        Order(bytes([i]) * size, bytes([i]) * (i % 3), {0: [(i,)], 1: [(-i,)]}) for i in range(n)
    ]


def keep(past, *kept):
    for order in kept:
        past.hold(order)
        past.close_round()


def test_the_orders_come_again_as_bytes_of_their_own():
    past = PastOrders()
    keep(past, *orders(5))
    assert len(past) == 5
    again = [order.arguments(1) for order in past]
    past.clear()
    keep(past, Order(b"other" * 100, b"", {}))
    assert again == [order.arguments(1) for order in orders(5)]
    assert all(type(model) is type(buffers) is bytes for _, model, buffers in again)


def test_after_a_checkpoint_the_memory_is_used_again(monkeypatch, store):
    monkeypatch.setattr(sims.ray_orders, "HELD_BYTES", 4096)
    past = PastOrders()
    for _ in range(10):
        keep(past, *orders(30))
        assert [o.arguments(0) for o in past] == [o.arguments(0) for o in orders(30)]
        past.clear()
        assert len(past) == 0
    assert store == []


def test_what_does_not_fit_goes_to_the_object_store(monkeypatch, store):
    monkeypatch.setattr(sims.ray_orders, "HELD_BYTES", 4096)
    past = PastOrders()
    keep(past, *orders(3, size=2000))
    first, second, third = past
    assert (first.is_stored, second.is_stored, third.is_stored) == (False, False, True)
    assert store == [b"\2" * 2000, b"\2" * 2]
    keep(past, Order(reference(), b"", {}))  # as large models always are
    assert len(store) == 2
    assert [order.shared_bytes for order in past] == [2000, 2001, 0, 0]


def test_a_round_without_tasks_holds_nothing():
    past = PastOrders()
    keep(past, Order(b"", b"", {}))
    assert [order.shared_bytes for order in past] == [0]


def test_the_order_of_an_open_round_is_not_among_the_past_ones():
    """A round that is begun again after a loss holds its order again."""
    past = PastOrders()
    first, second, other = orders(3)
    keep(past, first)
    past.hold(other)
    past.hold(second)
    assert len(past) == 1
    past.close_round()
    past.close_round()  # nothing is held
    assert [o.arguments(1) for o in past] == [o.arguments(1) for o in (first, second)]
    past.hold(other)
    past.clear()
    past.close_round()
    assert len(past) == 0


def test_a_system_without_large_pages_holds_orders_too(monkeypatch):
    class Pages(mmap.mmap):
        def madvise(self, *_):
            raise OSError("EINVAL")

    monkeypatch.setattr(sims.ray_orders.mmap, "mmap", Pages)
    past = PastOrders()
    keep(past, *orders(2))
    assert [o.arguments(1) for o in past] == [o.arguments(1) for o in orders(2)]
