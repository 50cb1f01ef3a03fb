"""Text by speaker: what is cut from it, what the networks minimize, who holds what."""

import bz2
import copy
import json

import numpy as np
import pytest
import torch

from fedef.character_data import character_data
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.problems.registry import build_problem
from sims.engine import InlineEngine

NOTHING = np.empty(0, dtype=np.float32)
TEXTS = {  # user: (play, sequences, characters)
    "a/first": ("a", 10, 80 * 10 + 1),
    "a/short": ("a", 0, 80),
    "b/long": ("b", 12, 80 * 12 + 80),
    "b/tiny": ("b", 1, 81),
    "c/last": ("c", 5, 80 * 5 + 40),
}


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """A file of five speakers who say "abc..." and so on, each from another letter."""
    path = tmp_path_factory.mktemp("plays") / "plays.jsonl"
    lines = []
    for number, (user, (play, _, size)) in enumerate(TEXTS.items()):
        text = "".join("abcd\n"[(place + number) % 5] for place in range(size))
        lines.append(json.dumps({"user": user, "play": play, "text": text}))
    path.write_text("\n".join(lines))
    return path


def problem_of(path, **settings):
    flat = {"problem": "char-lstm", "data": str(path), "partitioner": "natural", **settings}
    return build_problem(Config.from_flat({k.replace("_", "-"): v for k, v in flat.items()}))


def text_of(data, sequences):
    return "".join(data.alphabet[code] for code in sequences.ravel())


# --- the data ------------------------------------------------------------------------------------


def test_texts_are_cut_in_stretches_of_80_and_the_character_after(plays):
    """10, 12, 1, 5 sequences; the last fifth rounded down is held out: 8+2, 10+2, 1+0, 4+1."""
    data = character_data(str(plays), data_dir=None)
    assert data.alphabet == "\nabcd"
    assert np.bincount(data.owners).tolist() == [8, 10, 1, 4]
    assert np.bincount(data.test_owners, minlength=4).tolist() == [2, 2, 0, 1]
    assert np.bincount(data.groups).tolist() == [8, 11, 4]
    first = ("abcd\n" * 200)[: 80 * 10 + 1]
    assert text_of(data, data.train[data.owners == 0][:, :80]) == first[: 80 * 8]
    assert text_of(data, data.train[data.owners == 0][:, 1:]) == first[1 : 80 * 8 + 1]
    assert text_of(data, data.test[data.test_owners == 0][:, :80]) == first[80 * 8 : 80 * 10]


def test_the_published_text(data_dir):
    """Counts of the file of 1398 speakers; its compressed form is the one that is there."""
    data = character_data("shakespeare", data_dir=str(data_dir))
    raw = bz2.decompress((data_dir / "shakespeare_speakers.jsonl.bz2").read_bytes()).decode()
    speakers = [json.loads(line) for line in raw.splitlines()]
    sizes = [(len(speaker["text"]) - 1) // 80 for speaker in speakers]
    assert len(data.alphabet) == 72
    assert len(np.unique(data.owners)) == sum(size > 0 for size in sizes) == 1173
    assert len(data.train) + len(data.test) == sum(sizes) == 53227
    longest = max(speakers, key=lambda speaker: len(speaker["text"]))["text"]
    owner = np.bincount(data.owners).argmax()
    own = np.concatenate([data.train[data.owners == owner], data.test[data.test_owners == owner]])
    assert longest.startswith(text_of(data, own[:, :80]))


def test_natural_clients_are_speakers(plays):
    def sizes(clients, partitioner="natural", **settings):
        return problem_of(
            plays, num_clients=clients, partitioner=partitioner, **settings
        ).num_examples

    assert sizes(4) == (8, 10, 1, 4)
    assert sizes(2) == (18, 5)
    assert sizes(2, "natural-largest") == (8, 10)
    assert sum(sizes(3, "iid", train_examples=20)) == 20
    assert sizes(50, "shared", client_examples=2) == (2,) * 50
    with pytest.raises(ConfigError, match="num-clients=5 is more than the 4 natural clients"):
        sizes(5)


def test_the_test_is_of_the_speakers_who_take_part(plays):
    """The two largest of four hold out 4 sequences, all of them 5."""
    for partitioner, held_out in (("natural-largest", 4), ("natural", 5)):
        problem = problem_of(plays, num_clients=2, partitioner=partitioner)
        assert len(problem._test[0]) == held_out
    assert len(problem_of(plays, num_clients=2, test_examples=3)._test[0]) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user": "x", "text": "short"}', "no speaker with more than 80 characters"),
        ('{"user": "x"}', "not a file of speakers .*'text'"),
        ("[1]", "not a file of speakers"),
        ("no json", "not a file of speakers"),
        ('{"user": "x", "text": 3}', "user and text must be texts"),
        ('{"user": "x", "text": "a"}\n{"user": "x", "text": "b"}', "names a user twice"),
        (json.dumps({"user": "x", "text": "".join(map(chr, range(900)))}), "900 different char"),
    ],
)
def test_unusable_files_are_refused(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=f"data: .*bad.jsonl.*{message}"):
        character_data(str(path), data_dir=None)


def test_other_data_are_refused(tmp_path, plays):
    with pytest.raises(ConfigError, match=r"char-lstm needs text .* 'mnist'; set data=shakespeare"):
        problem_of("mnist")
    with pytest.raises(ConfigError, match="data: no file for 'shakespeare_speakers.jsonl'"):
        character_data("shakespeare", data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="instance: char-lstm takes none"):
        problem_of(plays, instance="a.npz")


# --- the networks --------------------------------------------------------------------------------

# By hand for V characters: embedding 8 V, cells of 128 units with g = 3 (GRU) or 4 (LSTM) gates
# 128 g (8 + 128 + 2), scores 129 V.
GATES = {"char-gru": 3, "char-lstm": 4}


@pytest.mark.parametrize("name", GATES)
def test_sizes(plays, name):
    problem = problem_of(plays, problem=name, num_clients=2)
    assert problem.dimension == 128 * GATES[name] * 138 + (8 + 129) * 5
    assert problem.initial_buffers().size == 0
    assert problem.labels(0) is None


@pytest.mark.parametrize("name", GATES)
def test_gradients_are_finite_differences(plays, name):
    """Central differences in float64 of the float32 gradient along two directions."""
    problem = problem_of(plays, problem=name, num_clients=2)
    x, rows, step = problem.initial_point(), np.array([3, 0]), 1e-5
    gradient = problem.local(0, x, rows=rows, buffers=NOTHING).gradient
    wide = copy.deepcopy(problem._model.module).double()
    inputs, targets = (part[rows] for part in problem._clients[0])

    def loss(point):
        torch.nn.utils.vector_to_parameters(torch.tensor(point), wide.parameters())
        return problem._model.loss(wide(inputs), targets).item()

    draws = np.random.default_rng(0)
    for _ in range(2):
        direction = draws.standard_normal(x.size)
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        assert gradient @ direction == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_recurrent_networks_are_not_batched(plays):
    """torch.func does not know them: the run stops with the way out."""
    settings = {"problem": "char-gru", "data": str(plays), "partitioner": "natural"}
    flat = {**settings, "num-clients": 4, "local-batch-size": 1, "batched": True}
    with pytest.raises(ConfigError, match="char-gru: .*set batched=false"):
        InlineEngine(Experiment.build(Config.from_flat(flat))).round()


def test_loss_and_accuracy_are_per_character(plays):
    """Scores that are biases alone: loss is their cross-entropy, one guess for all characters."""
    problem = problem_of(plays, num_clients=2)
    x = np.zeros(problem.dimension, dtype=np.float32)
    weights = np.array(problem.num_examples) / sum(problem.num_examples)
    uniform = problem.evaluate(x, weights=weights, buffers=NOTHING)
    assert uniform.loss == pytest.approx(np.log(5), rel=1e-6)
    bias = np.array([0.0, 2.0, 0.0, 1.0, 0.0])  # of "\nabcd": a is the guess
    x[-5:] = bias
    data = character_data(str(plays), data_dir=None)
    share = np.bincount(data.train[:, 1:].ravel(), minlength=5) / data.train[:, 1:].size
    guessed = problem.evaluate(x, weights=weights, buffers=NOTHING)
    assert guessed.loss == pytest.approx(np.log(np.exp(bias).sum()) - share @ bias, rel=1e-6)
    assert guessed.test_accuracy == pytest.approx(np.mean(data.test[:, 1:] == 1), rel=1e-12)


@pytest.mark.parametrize("name", GATES)
def test_a_run_has_the_same_bits_twice_and_learns_what_follows(plays, name):
    """||EF21-SGDM|| with local steps; a character determines the next."""
    flat = {
        "problem": name,
        "data": str(plays),
        "partitioner": "natural",
        "num-clients": 2,
        "method": "norm-ef21-sgdm",
        "momentum-eta": 0.5,
        "k-fraction": 0.1,
        "step-size": 1.0,
        "local-batch-size": 4,
        "local-steps": 2,
        "local-step-size": 0.5,
    }
    runs = [InlineEngine(Experiment.build(Config.from_flat(flat))) for _ in range(2)]
    for _ in range(2):
        losses = [run.round().train_loss for run in runs]
    assert runs[0].server.x.tobytes() == runs[1].server.x.tobytes()
    assert losses[0] == losses[1]
    for _ in range(12):
        last = runs[0].round().train_loss
    assert last < 0.7 * np.log(5)
