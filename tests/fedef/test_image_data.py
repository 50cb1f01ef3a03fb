"""Image sets: what the readers return, what they refuse, and the problems on them."""

import pickle

import numpy as np
import pytest

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.image_data import IMAGE_SETS, image_data
from fedef.problems import images
from fedef.problems.images import evaluation_rows
from fedef.problems.registry import build_problem
from fedef.vectors import norm
from sims.engine import InlineEngine

DRAWS = np.random.default_rng(0)
TRAIN, TEST = 60, 20


def differenced(pixels):
    """What cifar10.npz holds: less green, then each row less the one above, then columns."""
    d = pixels.copy()
    d[:, [0, 2]] -= pixels[:, [1]]
    d[:, :, 1:] -= d[:, :, :-1].copy()
    d[:, :, :, 1:] -= d[:, :, :, :-1].copy()
    return d


def arrays_of(name):
    """Random images of the set's shape, class r % 10 in row r."""
    channels, height, width = IMAGE_SETS[name]
    arrays = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        pixels = DRAWS.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
        stored = ("d", differenced(pixels)) if channels == 3 else ("x", pixels[:, 0])
        arrays |= {f"{stored[0]}_{part}": stored[1]}
        arrays |= {f"y_{part}": (np.arange(count) % 10).astype(np.uint8), f"pixels_{part}": pixels}
    return arrays


def write(folder, name, arrays):
    np.savez(folder / f"{name}.npz", **{k: v for k, v in arrays.items() if k[:6] != "pixels"})


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory):
    """A folder with all sets, tiny."""
    folder = tmp_path_factory.mktemp("sets")
    for name in IMAGE_SETS:
        write(folder, name, arrays_of(name))
    return folder


def config(folder, **settings):
    flat = {"data-dir": str(folder), "num-clients": 2, "partitioner": "iid", **settings}
    return Config.from_flat({key.replace("_", "-"): value for key, value in flat.items()})


# --- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_pixels_are_channels_first_and_undifferenced(tmp_path, name):
    arrays = arrays_of(name)
    write(tmp_path, name, arrays)
    data = image_data(name, data_dir=str(tmp_path), seed=0)
    np.testing.assert_array_equal(data.train_images, arrays["pixels_train"])
    np.testing.assert_array_equal(data.test_images, arrays["pixels_test"])
    np.testing.assert_array_equal(data.train_labels, np.arange(TRAIN) % 10)
    np.testing.assert_array_equal(data.test_labels, np.arange(TEST) % 10)
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == np.int64


# Known everywhere: mean and deviation of the training pixels over 255.
@pytest.mark.parametrize(
    ("name", "rows", "mean", "deviation", "labels"),
    [
        ("mnist", 60000, [0.1307], [0.3081], [5, 0, 4, 1, 9]),
        ("fashion_mnist", 60000, [0.2860], [0.3530], [9, 0, 0, 3, 0]),
        ("cifar10", 50000, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], [6, 9, 9, 4, 1]),
    ],
)
def test_published_sets(data_dir, name, rows, mean, deviation, labels):
    data = image_data(name, data_dir=str(data_dir), seed=0)
    assert data.train_images.shape == (rows, *IMAGE_SETS[name])
    assert data.test_images.shape == (10000, *IMAGE_SETS[name])
    assert data.train_labels[:5].tolist() == labels
    assert np.bincount(data.test_labels).min() > 890
    shares = [
        np.bincount(data.train_images[:, channel].ravel(), minlength=256) / data.train_images.size
        for channel in range(IMAGE_SETS[name][0])
    ]
    values = np.arange(256) / 255
    first = np.array([len(shares) * share @ values for share in shares])
    second = np.array([len(shares) * share @ values**2 for share in shares])
    np.testing.assert_allclose(first, mean, atol=5e-5)
    np.testing.assert_allclose(np.sqrt(second - first**2), deviation, atol=6e-5)


def test_a_part_is_drawn_by_the_seed_and_begins_a_larger_part(small_sets):
    def part(seed, train, test=0):
        return image_data(
            "mnist",
            data_dir=str(small_sets),
            seed=seed,
            train_examples=train,
            test_examples=test,
        )

    whole, few, more = part(0, 0), part(0, 10, 5), part(0, 30)
    assert (len(few.train_labels), len(few.test_labels)) == (10, 5)
    np.testing.assert_array_equal(few.train_images, more.train_images[:10])
    assert not np.array_equal(few.train_images, part(1, 10).train_images)
    rows = {image.tobytes(): label for image, label in zip(*_train(whole), strict=True)}
    drawn = {image.tobytes(): label for image, label in zip(*_train(more), strict=True)}
    assert len(drawn) == 30
    assert drawn.items() <= rows.items()


def _train(data):
    return data.train_images, data.train_labels


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path):
    write(tmp_path, "mnist", arrays_of("mnist"))
    first = image_data("mnist", data_dir=str(tmp_path), seed=0)
    again = image_data("mnist", data_dir=str(tmp_path), seed=1)
    assert np.shares_memory(first.train_images, again.train_images)
    with pytest.raises(ValueError, match="read-only"):
        first.train_images[0] = 0
    other = arrays_of("mnist")
    write(tmp_path, "mnist", other)
    changed = image_data("mnist", data_dir=str(tmp_path), seed=0)
    np.testing.assert_array_equal(changed.train_images, other["pixels_train"])


def test_the_folder_comes_from_data_dir_or_the_environment(small_sets, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDEF_DATA", str(small_sets))
    assert len(image_data("cifar10", data_dir=None, seed=0).train_labels) == TRAIN
    with pytest.raises(
        ConfigError, match=r"no file for 'cifar10.npz', tried .*data-dir= .*FEDEF_DATA"
    ):
        image_data("cifar10", data_dir=str(tmp_path), seed=0)


def test_unusable_files_are_refused(tmp_path):
    good = arrays_of("mnist")

    def refused(message, **changes):
        write(tmp_path, "mnist", {**good, **changes})
        with pytest.raises(ConfigError, match=message):
            image_data("mnist", data_dir=str(tmp_path), seed=0)

    refused(r"uint8 images \(N, 28, 28\).*got float64", x_train=good["x_train"] / 255)
    refused(r"got uint8 \(60, 14, 56\)", x_train=good["x_train"].reshape(TRAIN, 14, 56))
    refused(r"for test, got .*uint8 \(19,\)", y_test=good["y_test"][1:])
    refused(
        r"for train, got .*\(0, 28, 28\)", x_train=good["x_train"][:0], y_train=good["y_train"][:0]
    )
    refused("the label 10 in test, allowed are 0 to 9", y_test=good["y_test"] + np.uint8(1))
    refused("missing or unknown: .'d_train'", d_train=good["x_train"])
    refused("not a readable npz file", y_train=np.array([None] * TRAIN))
    (tmp_path / "mnist.npz").write_bytes(b"text")
    with pytest.raises(ConfigError, match=r"mnist.npz' is not a readable npz file"):
        image_data("mnist", data_dir=str(tmp_path), seed=0)


def test_unusable_arguments_are_refused(small_sets):
    folder = str(small_sets)
    with pytest.raises(ConfigError, match=r"no image set 'svhn'; .*mnist, fashion_mnist, cifar10"):
        image_data("svhn", data_dir=folder, seed=0)
    with pytest.raises(ConfigError, match="train-examples: mnist has 60, got 61; use at most 60"):
        image_data("mnist", data_dir=folder, seed=0, train_examples=61)
    with pytest.raises(ConfigError, match="test-examples: mnist has 20, got 21"):
        image_data("mnist", data_dir=folder, seed=0, test_examples=21)


# --- problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "data: problem=image-mlp needs images, got 'breast_cancer'; set data= to one of mnist",
        ),
        ({"data": "mnist", "normalize": True}, "normalize: .*data=mnist is grey; set normalize="),
        ({"data": "mnist", "instance": "a.npz"}, "instance: image-mlp takes none"),
        ({"data": "mnist", "num_clients": 61}, "num-clients=61 .* the data has 60"),
        ({"data": "mnist", "train_examples": 70}, "train-examples: mnist has 60, got 70"),
    ],
)
def test_settings_that_do_not_fit_are_refused(small_sets, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_problem(config(small_sets, problem="image-mlp", **settings))


def test_batch_norm_is_refused_where_one_pass_would_be_too_large(small_sets, monkeypatch):
    monkeypatch.setattr(images, "LARGEST_BATCH", 25)
    settings = {"problem": "resnet20", "data": "mnist"}
    for batch in (0, 26):
        with pytest.raises(
            ConfigError, match=r"largest client has 30 rows .*set local-batch-size="
        ):
            build_problem(config(small_sets, **settings, local_batch_size=batch))
    problem = build_problem(config(small_sets, **settings, local_batch_size=25))
    x, buffers = problem.initial_point(), problem.initial_buffers()
    assert np.isfinite(problem.local(0, x, rows=np.arange(25), buffers=buffers).loss)
    for rows in (None, np.arange(26)):
        with pytest.raises(ConfigError, match=r"resnet20: a pass over .* rows of client 0 at once"):
            problem.local(0, x, rows=rows, buffers=buffers)
    without = build_problem(config(small_sets, **{**settings, "problem": "resnet20-gn"}))
    assert np.isfinite(without.local(0, x, buffers=without.initial_buffers()).loss)


def test_pixels_enter_the_network_between_0_and_1_or_normalized(small_sets):
    """Softmax regression with a first row of ones reads the sum of what enters."""
    for normalize in (False, True):
        settings = {"problem": "image-softmax", "data": "cifar10", "normalize": normalize}
        problem = build_problem(config(small_sets, **settings, num_clients=1))
        pixels = image_data("cifar10", data_dir=str(small_sets), seed=0).train_images[7] / 255
        if normalize:
            mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[
                ..., None, None
            ]
            pixels = (pixels - mean) / deviation
        w = np.zeros((10, 3072), dtype=np.float32)
        w[0] = 1e-3
        x = np.concatenate([w.ravel(), np.zeros(10, dtype=np.float32)])
        row = problem.local(0, x, rows=np.array([7]), buffers=problem.initial_buffers())
        # Row 7 has class 7: loss = log(9 + e^s), s the weighted sum; dW[7] = (p - 1) pixels.
        score = 1e-3 * pixels.sum()
        assert row.loss == pytest.approx(np.log(9 + np.exp(score)), rel=1e-5)
        p = 1 / (9 + np.exp(score))
        slope = row.gradient[: w.size].reshape(10, -1)[7]
        np.testing.assert_allclose(slope, (p - 1) * pixels.ravel(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("problem", ["image-cnn", "resnet20"])
def test_evaluation_in_parts_is_the_mean_over_all_rows(small_sets, monkeypatch, problem):
    """7 rows at a time: loss and gradient as in one pass, to float32's rounding."""
    settings = config(small_sets, problem=problem, data="cifar10")
    whole = build_problem(settings)
    network = images.NETWORKS[problem]
    monkeypatch.setitem(
        images.NETWORKS, problem, images.Network(network.make, 7, network.batch_norm)
    )
    parts = build_problem(settings)
    x, buffers, weights = whole.initial_point(), whole.initial_buffers(), np.array([0.25, 0.75])
    np.testing.assert_array_equal(x, parts.initial_point())
    one, many = (p.evaluate(x, weights=weights, buffers=buffers) for p in (whole, parts))
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert many.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
    assert many.test_accuracy == one.test_accuracy
    a, b = (p.local(0, x, buffers=buffers) for p in (whole, parts))
    if problem == "resnet20":  # batch norm: still one pass
        assert (a.loss, a.gradient.tobytes()) == (b.loss, b.gradient.tobytes())
    else:
        assert b.loss == pytest.approx(a.loss, rel=1e-6)
        assert b.gradient.dtype == np.float32
        assert norm(a.gradient - b.gradient) <= 1e-5 * norm(a.gradient)


def test_evaluation_rows_are_the_same_share_of_every_client():
    rows = evaluation_rows([100, 0, 1, 400], 50, seed=3)
    assert [len(r) for r in rows] == [10, 0, 1, 40]
    assert all(len(set(r.tolist())) == len(r) for r in rows)
    assert max(rows[3]) < 400
    again, other = evaluation_rows([100], 50, seed=3), evaluation_rows([100], 50, seed=4)
    np.testing.assert_array_equal(rows[0], again[0][:10])
    assert not np.array_equal(again[0], other[0])
    assert evaluation_rows([3, 4], 0, seed=0) is None
    assert evaluation_rows([3, 4], 7, seed=0) is None


def test_an_evaluation_on_some_rows_is_that_of_a_problem_with_those_rows(small_sets):
    problem = build_problem(
        config(small_sets, problem="image-softmax", data="mnist", eval_examples=20)
    )
    x, buffers = problem.initial_point(), problem.initial_buffers()
    chosen = evaluation_rows(problem.num_examples, 20, seed=0)
    assert [len(rows) for rows in chosen] == [10, 10]
    results = [problem.local(i, x, rows=rows, buffers=buffers) for i, rows in enumerate(chosen)]
    evaluation = problem.evaluate(x, weights=np.full(2, 0.5), buffers=buffers)
    assert evaluation.loss == pytest.approx(np.mean([r.loss for r in results]), rel=1e-12)
    gradient = np.mean([r.gradient.astype(float) for r in results], axis=0)
    assert evaluation.gradient_norm == pytest.approx(norm(gradient), rel=1e-12)


def test_the_same_configuration_gives_the_same_bits_after_a_pickle(small_sets):
    settings = config(small_sets, problem="resnet20-gn", data="cifar10", normalize=True)
    problem = build_problem(settings)
    x, rows = problem.initial_point(), np.arange(5)

    def bits(other):
        return other.local(1, x, rows=rows, buffers=other.initial_buffers()).gradient.tobytes()

    assert bits(problem) == bits(build_problem(settings))
    assert bits(problem) == bits(pickle.loads(pickle.dumps(problem)))


@pytest.mark.parametrize(("problem", "rounds"), [("image-softmax", 30), ("image-cnn", 30)])
def test_error_feedback_learns_fashion_mnist(data_dir, problem, rounds):
    settings = config(
        data_dir,
        problem=problem,
        data="fashion_mnist",
        train_examples=500,
        test_examples=200,
        num_clients=5,
        method="norm-ef21-sgdm",
        k_fraction=0.1,
        momentum_eta=0.5,
        step_size=0.5,
        partitioner="dirichlet",
        dirichlet_alpha=1.0,
    )
    experiment = Experiment.build(settings)
    engine = InlineEngine(experiment)
    weights = np.array(experiment.weights) / sum(experiment.weights)

    def evaluate():
        server = engine.server
        return experiment.problem.evaluate(server.x, weights=weights, buffers=server.buffers)

    before = evaluate()
    assert before.loss == pytest.approx(np.log(10), abs=0.15)
    for _ in range(rounds):
        engine.round()
    after = evaluate()
    assert after.loss < 0.6 * before.loss
    assert after.test_accuracy > 0.55


@pytest.mark.slow
def test_resnet20_learns_cifar10_from_minibatches(data_dir):
    """270k parameters, 5 clients, top-k 1 %: the loss that the clients report falls by a third."""
    settings = config(
        data_dir,
        problem="resnet20",
        data="cifar10",
        num_clients=5,
        train_examples=2000,
        method="norm-ef21-sgdm",
        k_fraction=0.01,
        momentum_eta=0.2,
        step_size=0.2,
        schedule="constant",
        local_batch_size=16,
    )
    engine = InlineEngine(Experiment.build(settings))
    losses = [engine.round().train_loss for _ in range(40)]
    assert engine.server.x.size == 269722
    assert np.mean(losses[-10:]) < 0.67 * np.mean(losses[:3])


@pytest.mark.parametrize("buffers", ["average", "local"])
def test_resnet20_resumes_with_the_same_bits(small_sets, buffers):
    """Two rounds equal one round, its states handed on, and one more; 40 images, 2 clients."""
    settings = config(
        small_sets,
        problem="resnet20",
        data="cifar10",
        train_examples=40,
        local_batch_size=8,
        buffers=buffers,
    )
    experiment = Experiment.build(settings)
    engine = InlineEngine(experiment)
    first = engine.round()
    assert list(first.accepted) == [0, 1]
    states = {client: session.state for client, session in engine.clients.items()}
    kept = [state.pending.buffers if buffers == "local" else None for state in states.values()]
    resumed = InlineEngine(
        Experiment.build(settings), server_state=engine.server.state, client_states=states
    )
    for each in (engine, resumed):
        each.round()
    assert engine.server.x.tobytes() == resumed.server.x.tobytes()
    assert engine.server.buffers.tobytes() == resumed.server.buffers.tobytes()
    assert not np.array_equal(engine.server.x, experiment.problem.initial_point())
    start = experiment.problem.initial_buffers()
    if buffers == "average":
        assert engine.server.buffers.size == 1376
        assert not np.array_equal(engine.server.buffers, start)
    else:
        assert engine.server.buffers.size == 0
        assert all(own.size == 1376 and not np.array_equal(own, start) for own in kept)
        assert not np.array_equal(*kept)
