"""Data of one's own: npz files, Hugging Face data sets on disk, natural clients."""

import datasets
import numpy as np
import pytest
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.image_data import image_data
from fedef.partitions import partition
from fedef.problems.registry import build_problem
from sims.engine import InlineEngine
from sims.flower_run import _with_absolute_paths

DRAWS = np.random.default_rng(0)
PIXELS = DRAWS.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
CLASSES = np.arange(12) % 3
SPEAKERS = np.array(["mia", "ann", "ann", "leo", "mia", "ann"] * 2)


def config(data, **settings):
    flat = {"data": data, "num-clients": 2, "partitioner": "iid", **settings}
    return Config.from_flat({key.replace("_", "-"): value for key, value in flat.items()})


def read(data, **settings):
    return image_data(str(data), data_dir=None, seed=0, **settings)


# --- npz -----------------------------------------------------------------------------------------


def written(folder, **arrays):
    np.savez(folder / "own.npz", **{"x_train": PIXELS, "y_train": CLASSES, **arrays})
    return str(folder / "own.npz")


def test_an_npz_of_colour_images_becomes_channels_first(tmp_path):
    data = read(written(tmp_path, x_test=PIXELS[:4], y_test=CLASSES[:4]))
    np.testing.assert_array_equal(data.train_images, PIXELS.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test_images, data.train_images[:4])
    assert (data.train_images.dtype, data.num_classes, data.shape) == (np.uint8, 3, (3, 6, 5))
    assert data.owners is None


def test_the_published_file_read_as_ones_own_is_the_same(data_dir):
    ours = image_data("mnist.npz", data_dir=str(data_dir), seed=1, train_examples=50)
    published = image_data("mnist", data_dir=str(data_dir), seed=1, train_examples=50)
    np.testing.assert_array_equal(ours.train_images, published.train_images)
    np.testing.assert_array_equal(ours.test_labels, published.test_labels)
    assert ours.num_classes == 10


def test_vectors_enter_as_they_are_and_a_missing_test_set_is_none(tmp_path):
    """Softmax regression in closed form at x = 0: grad W = mean (p - e_y) v^T, p = 1/3."""
    vectors = DRAWS.standard_normal((12, 4))
    path = written(tmp_path, x_train=vectors)
    problem = build_problem(config(path, problem="image-softmax", num_clients=1))
    x, nothing = np.zeros(3 * 4 + 3, dtype=np.float32), problem.initial_buffers()
    result = problem.local(0, x, buffers=nothing)
    errors = 1 / 3 - np.eye(3)[CLASSES]
    expected = np.append((errors.T @ vectors / 12).ravel(), errors.mean(axis=0))
    np.testing.assert_allclose(result.gradient, expected, rtol=1e-5, atol=1e-7)
    assert problem.evaluate(x, weights=np.ones(1), buffers=nothing).test_accuracy is None


def test_natural_clients_of_an_npz(tmp_path):
    path = written(tmp_path, client_train=np.array([7, 5, 5, 9, 7, 5] * 2))
    problem = build_problem(config(path, problem="image-mlp", partitioner="natural", num_clients=3))
    assert problem.num_examples == (6, 4, 2)
    assert problem.labels(0).tolist() == CLASSES[[1, 2, 5, 7, 8, 11]].tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": PIXELS.transpose(0, 3, 1, 2)}, r"shape \(12, 3, 6, 5\) .*channels last"),
        ({"x_train": PIXELS[:, 0, 0, 0]}, r"shape \(12,\) for train, expected vectors"),
        ({"y_train": CLASSES / 1.0}, "labels of type float64"),
        ({"y_train": CLASSES - 1}, "for train, from -1; expected one integer from 0"),
        ({"y_train": CLASSES[1:]}, r"shape \(11,\) for 12 features"),
        ({"y_train": CLASSES * 50}, "labels up to 100 for 12 training examples"),
        ({"y_train": CLASSES * 0}, "1 classes; .*at least two"),
        ({"x_test": PIXELS}, "only one of x_test and y_test"),
        ({"x_test": PIXELS[:, :3], "y_test": CLASSES}, r"\(3, 6, 5\) for train .*\(3, 3, 5\) for"),
        ({"client_train": CLASSES[1:]}, r"clients of \(11,\) examples"),
        ({"weights": CLASSES}, "missing or unknown: .'weights'"),
        ({"x_train": np.full((12, 2), 1e300)}, "NaN or infinite features"),
    ],
)
def test_unusable_npz_files_are_refused(tmp_path, arrays, message):
    with pytest.raises(ConfigError, match=f"(?s)data: .*own.npz.*{message}"):
        read(written(tmp_path, **arrays))


def test_convolutions_need_images(tmp_path):
    path = written(tmp_path, x_train=DRAWS.standard_normal((12, 16)))
    for problem in ("image-cnn", "resnet20-gn"):
        with pytest.raises(ConfigError, match=r"convolutions need images .*got shape \(16,\)"):
            build_problem(config(path, problem=problem))
    with pytest.raises(ConfigError, match="normalize: .*colour bytes"):
        build_problem(config(path, problem="image-mlp", normalize=True))


# --- Hugging Face --------------------------------------------------------------------------------

PICTURES = Dataset.from_dict(
    {"picture": list(PIXELS), "kind": CLASSES.tolist(), "who": SPEAKERS.tolist()},
    features=Features(
        {
            "picture": Image(),
            "kind": ClassLabel(names=["cat", "dog", "owl", "yak"]),
            "who": Value("string"),
        }
    ),
)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """What ``save_to_disk`` writes of two splits."""
    folder = tmp_path_factory.mktemp("hf") / "pictures"
    datasets.disable_progress_bars()
    both = DatasetDict({"train": PICTURES, "test": PICTURES.select(range(5))})
    both.save_to_disk(str(folder))
    return folder


def with_columns(folder, **settings):
    """The data behind a configuration, as the problem gets them."""
    return build_problem(config(f"hf:{folder}", problem="image-mlp", **settings))


def test_a_data_set_on_disk_is_found_by_its_types(on_disk):
    data = read(f"hf:{on_disk}")
    np.testing.assert_array_equal(data.train_images, PIXELS.transpose(0, 3, 1, 2))
    assert data.train_labels.tolist() == CLASSES.tolist()
    assert (len(data.test_labels), data.num_classes, data.owners) == (5, 4, None)
    again = image_data(f"hf:{on_disk}", data_dir=None, seed=1)
    assert np.shares_memory(again.train_images, data.train_images)


def test_natural_clients_are_a_column(on_disk):
    """ann: 6 examples, leo: 2, mia: 4, in alphabetical order; the two largest are ann and mia."""
    natural = {"partitioner": "natural", "client_column": "who"}
    assert with_columns(on_disk, **natural, num_clients=3).num_examples == (6, 2, 4)
    assert with_columns(on_disk, **natural, num_clients=2).num_examples == (8, 4)
    largest = {**natural, "partitioner": "natural-largest"}
    problem = with_columns(on_disk, **largest, num_clients=2)
    assert problem.num_examples == (6, 4)
    assert problem.labels(1).tolist() == CLASSES[SPEAKERS == "mia"].tolist()


def test_a_run_on_a_data_set_of_ones_own_learns(on_disk):
    settings = {"problem": "image-softmax", "method": "norm-ef21", "k": 40, "step_size": 0.3}
    experiment = Experiment.build(config(f"hf:{on_disk}", **settings))
    engine = InlineEngine(experiment)
    losses = [engine.round().train_loss for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_folder_of_parquet_files_with_arrays_and_texts(tmp_path, monkeypatch):
    """No types to tell by: names tell; small integers stay bytes; texts become classes."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    kinds = {"x": Array3D((6, 5, 3), "uint8"), "y": Value("string"), "v": List(Value("float32"))}
    names = np.array(["owl", "cat", "yak"])[CLASSES]
    vectors = DRAWS.standard_normal((12, 4)).astype(np.float32)
    table = Dataset.from_dict(
        {"x": list(PIXELS), "y": names.tolist(), "v": vectors.tolist()}, features=Features(kinds)
    )
    folder = tmp_path / "tables"
    folder.mkdir()
    table.to_parquet(str(folder / "train.parquet"))
    table.select(range(4)).to_parquet(str(folder / "validation.parquet"))
    problem = with_columns(folder, test_split="validation")
    assert problem.labels(0).max() == 2
    with pytest.raises(ConfigError, match="test-split: .*splits train, validation, got 'test'"):
        with_columns(folder)
    columns = {"feature_column": "v", "test_split": ""}
    assert with_columns(folder, **columns).dimension == 4 * 128 + 128 + 128 * 3 + 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_column": "species"}, "label-column: .*columns picture, kind, who, got 'species'"),
        ({"feature_column": "who"}, "feature-column: 'who' of .* must hold pictures or arrays"),
        ({"feature_column": "kind"}, r"features of shape \(12,\)"),
        ({"train_split": "all"}, "train-split: .*splits train, test, got 'all'"),
        ({"client_column": "speaker"}, "client-column: .*got 'speaker'"),
        ({"partitioner": "natural"}, "partitioner=natural needs data that know their clients"),
        (
            {"partitioner": "natural", "client_column": "who", "num_clients": 4},
            "num-clients=4 is more than the 3 natural clients",
        ),
    ],
)
def test_what_does_not_fit_a_data_set_is_refused(on_disk, settings, message):
    with pytest.raises(ConfigError, match=message):
        with_columns(on_disk, **settings)


def test_pictures_of_two_sizes_are_refused(tmp_path):
    pictures = [np.zeros((4, 4 + row), np.uint8) for row in range(3)]
    table = Dataset.from_dict(
        {"image": pictures, "label": [0, 1, 0]},
        features=Features({"image": Image(), "label": Value("int64")}),
    )
    table.save_to_disk(str(tmp_path / "mixed"))
    with pytest.raises(ConfigError, match="all of one shape and mode, got Image.*resize"):
        with_columns(tmp_path / "mixed", test_split="")


def test_without_a_network_the_way_out_is_said(monkeypatch, tmp_path):
    """HF_DATASETS_OFFLINE=1, which the library reads when it is loaded."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ConfigError, match=r"'nobody/nothing@v1' .*HF_DATASETS_OFFLINE=1"):
        read("hf:nobody/nothing@v1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot load the Hugging Face data set"):
        read(f"hf:{tmp_path / 'empty'}")


def test_flower_gets_absolute_paths(on_disk, monkeypatch):
    monkeypatch.chdir(on_disk.parent)
    assert _with_absolute_paths(config("hf:pictures")).data == f"hf:{on_disk}"
    assert _with_absolute_paths(config("hf:some/name")).data == "hf:some/name"


# --- natural partitions --------------------------------------------------------------------------


def test_natural_parts_keep_owners_together():
    """Every example once with `natural`; with `natural-largest` the largest owners, one each."""
    owners = DRAWS.integers(0, 40, 500)
    labels = np.zeros(500, dtype=np.int64)

    def deal(partitioner, clients):
        return partition(
            labels, num_clients=clients, partitioner=partitioner, seed=0, owners=owners
        )

    sizes = np.bincount(owners)
    for clients in (1, 7, len(np.unique(owners))):
        parts = deal("natural", clients)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(500))
        held = [set(owners[part].tolist()) for part in parts]
        assert sum(map(len, held)) == len(np.unique(owners))
        assert max(map(len, held)) - min(map(len, held)) <= 1
        largest = deal("natural-largest", clients)
        assert all(len(set(owners[part].tolist())) == 1 for part in largest)
        assert sorted(map(len, largest)) == sorted(sizes)[-clients:]
        assert [owners[part[0]] for part in largest] == sorted(owners[p[0]] for p in largest)
