"""``fedef partition``: the numbers, the picture and the table."""

import csv
import struct

import numpy as np
import pytest
from typer.testing import CliRunner

from fedef.config import Config
from fedef.experiment import Experiment
from sims.cli import app
from sims.page.drawing import png, svg
from sims.partition_picture import Dealt, picture


def dealt(**keys):
    flat = {"problem": "digits-softmax", **{k.replace("_", "-"): v for k, v in keys.items()}}
    return Dealt.of(Experiment.build(Config.from_flat(flat)))


def test_two_classes_each_are_seen():
    made = dealt(partitioner="pathological", num_clients=10, classes_per_client=2)
    heading, *rows = made.rows()
    assert heading[:4] == ["client", "examples", "classes", "distance"]
    assert {row[2] for row in rows} == {"2"}
    assert "2 to 2 of 10 classes each" in made.summary
    numbers = np.array([row[4:] for row in rows], dtype=int)
    assert numbers.sum(axis=1).tolist() == made.sizes.tolist()
    # Two of ten nearly equal classes are nearly 0.8 away from all of them.
    assert made.distance == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"num_clients": 12, "partitioner": "iid"}, "class (area: examples)"),
        ({"num_clients": 40, "partitioner": "iid"}, "class (height: examples)"),
        ({"num_clients": 120, "partitioner": "contiguous"}, "label distance of a client"),
        (
            {"problem": "phase-retrieval", "num_clients": 3, "partitioner": "iid"},
            "examples of each",
        ),
        (
            {"problem": "phase-retrieval", "num_clients": 300, "partitioner": "iid"},
            "examples of a client",
        ),
    ],
)
def test_a_picture_for_few_and_many_clients_with_and_without_classes(keys, shown):
    draw = picture(dealt(**keys))
    assert shown in svg(draw, name="p", label="who holds what")
    width, height = struct.unpack(">II", png(draw)[16:24])
    assert (width, height) == (736, 640)


def test_the_command_writes_the_picture_and_its_numbers(tmp_path):
    out = tmp_path / "new" / "who.png"
    result = CliRunner().invoke(
        app, ["partition", "problem=digits-softmax", "num-clients=35", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "and 5 more clients" in result.output
    assert "label distance 0." in result.output.replace("\n", " ")
    assert out.read_bytes().startswith(b"\x89PNG")
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 35
    assert sum(int(row["examples"]) for row in rows) == 1438
