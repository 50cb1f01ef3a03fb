"""Every example goes to exactly one client, the same one each time."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.partitions import partition, partition_for

PARTITIONERS = ["iid", "contiguous", "dirichlet", "pathological"]
LABELS = np.random.default_rng(0).integers(0, 10, size=600)


def deal(partitioner, labels=LABELS, **changes):
    options = {"num_clients": 12, "seed": 3, "min_partition_size": 0, **changes}
    return partition(labels, partitioner=partitioner, **options)


def classes_of(part):
    return set(LABELS[part].tolist())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    partitioner=st.sampled_from(PARTITIONERS),
    num_clients=st.integers(1, 15),
    num_classes=st.integers(1, 4),
    num_examples=st.integers(60, 90),
    classes_per_client=st.integers(1, 4),
    alpha=st.sampled_from([1e-300, 1e-3, 0.1, 100.0]),
    seed=st.integers(0, 2**63 - 1),
)
def test_parts_are_an_exact_partition_or_the_settings_are_refused(
    partitioner, num_clients, num_classes, num_examples, classes_per_client, alpha, seed
):
    labels = np.arange(num_examples) % num_classes
    infeasible = partitioner == "pathological" and (
        classes_per_client > num_classes or num_clients + classes_per_client - 1 < num_classes
    )
    try:
        parts = partition(
            labels,
            num_clients=num_clients,
            partitioner=partitioner,
            seed=seed,
            dirichlet_alpha=alpha,
            classes_per_client=classes_per_client,
            min_partition_size=0,
        )
    except ConfigError:
        assert infeasible
        return
    assert not infeasible
    assert len(parts) == num_clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_the_same_arguments_give_the_same_parts(partitioner):
    before = random.getstate()
    first, again = deal(partitioner), deal(partitioner)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert random.getstate() == before


@pytest.mark.parametrize("partitioner", ["iid", "dirichlet", "pathological"])
def test_another_seed_gives_other_parts(partitioner):
    pairs = zip(deal(partitioner), deal(partitioner, seed=4), strict=True)
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_iid_shards_are_near_equal_and_shuffled():
    parts = deal("iid", num_clients=7)
    assert {len(part) for part in parts} == {85, 86}
    assert max(parts[0]) > 300


def test_contiguous_shards_are_near_equal_runs_in_order():
    parts = deal("contiguous", num_clients=7)
    assert {len(part) for part in parts} == {85, 86}
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(600))


def test_a_small_dirichlet_alpha_concentrates_classes():
    def mean_classes(alpha):
        parts = deal("dirichlet", num_clients=10, dirichlet_alpha=alpha)
        return np.mean([len(classes_of(part)) for part in parts])

    assert mean_classes(0.05) < 5 < 9 < mean_classes(100.0)


@pytest.mark.parametrize(("num_clients", "classes_per_client"), [(12, 2), (10, 1), (4, 7)])
def test_pathological_clients_hold_the_number_of_classes_asked_for(num_clients, classes_per_client):
    parts = deal("pathological", num_clients=num_clients, classes_per_client=classes_per_client)
    assert {len(classes_of(part)) for part in parts} == {classes_per_client}


def test_pathological_deals_every_class_even_to_fewer_clients_than_classes():
    for seed in range(5):
        parts = deal("pathological", num_clients=9, classes_per_client=2, seed=seed)
        assert sum(map(len, parts)) == 600


def test_dirichlet_may_leave_clients_empty_only_when_allowed():
    assert min(map(len, deal("dirichlet", num_clients=40, dirichlet_alpha=0.01))) == 0
    parts = deal("dirichlet", num_clients=10, dirichlet_alpha=0.5, min_partition_size=5)
    assert min(map(len, parts)) >= 5


@pytest.mark.parametrize(
    ("partitioner", "changes", "message"),
    [
        ("iid", {"num_clients": 601}, "num-clients=601 .* the data has 600; use at most 600"),
        ("contiguous", {"num_clients": 601}, "the data has 600"),
        ("iid", {"min_partition_size": 51}, "needs 612 examples, .* use at most 11 clients"),
        ("pathological", {"classes_per_client": 11}, "classes-per-client=11 is more than the 10"),
        (
            "pathological",
            {"num_clients": 3, "classes_per_client": 2},
            "3 clients .* to nobody; use at least 8 classes per client or 9 clients",
        ),
        (
            "pathological",
            {"num_clients": 300, "classes_per_client": 5},
            "num-clients=300 .* fewer examples than clients that need it",
        ),
        (
            "dirichlet",
            {"dirichlet_alpha": 0.01, "min_partition_size": 30},
            "dirichlet-alpha=0.01.*min-partition-size=30; use a larger dirichlet-alpha",
        ),
        ("pathological", {"min_partition_size": 49}, "leaves a client with [0-9]+ examples"),
        ("shards", {}, "unknown partitioner 'shards'; one of"),
    ],
)
def test_infeasible_settings_are_refused_with_numbers_and_a_way_out(partitioner, changes, message):
    with pytest.raises(ConfigError, match=message):
        deal(partitioner, **changes)


def test_partition_for_uses_every_setting_of_the_configuration():
    config = Config.from_flat(
        {
            "num-clients": 5,
            "partitioner": "dirichlet",
            "dirichlet-alpha": 0.7,
            "min-partition-size": 2,
            "seed": 9,
        }
    )
    expected = partition(
        LABELS,
        num_clients=5,
        partitioner="dirichlet",
        seed=9,
        dirichlet_alpha=0.7,
        min_partition_size=2,
    )
    for a, b in zip(partition_for(config, LABELS), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    held = partition_for(
        Config.from_flat({"partitioner": "pathological", "classes-per-client": 3}), LABELS
    )
    assert {len(classes_of(part)) for part in held} == {3}
