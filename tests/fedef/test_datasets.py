"""What the readers return, and what they refuse."""

import bz2

import numpy as np
import pytest

from fedef.datasets import binary_data, breast_cancer, digits, find_file, libsvm, synthetic
from fedef.errors import ConfigError

FOUR_ROWS = "2 1:0.5 3:-1\n1 2:4\n2 1:1 2:1 3:1\n1\n"


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="rows"):
        path = tmp_path / name
        path.write_bytes(bz2.compress(text.encode()) if name.endswith("bz2") else text.encode())
        return path

    return write_file


def test_digits_split_is_a_fifth_and_a_function_of_the_seed():
    data = digits(0)
    assert data.train_images.shape == (1438, 64)
    assert data.test_images.shape == (359, 64)
    assert data.train_images.dtype == np.float32
    assert data.train_labels.dtype == np.int64
    assert (data.train_images.min(), data.train_images.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(data.test_images, digits(0).test_images)
    assert not np.array_equal(data.test_labels, digits(1).test_labels)


def test_digits_train_and_test_are_the_whole_set():
    def sorted_rows(images):
        return images[np.lexsort(images.T)]

    parts = [np.concatenate([d.train_images, d.test_images]) for d in (digits(0), digits(1))]
    np.testing.assert_array_equal(*map(sorted_rows, parts))


def test_breast_cancer_columns_fill_minus_1_to_1():
    data = breast_cancer()
    assert data.features.shape == (569, 30)
    np.testing.assert_array_equal(data.features.min(axis=0), -1.0)
    np.testing.assert_allclose(data.features.max(axis=0), 1.0, rtol=1e-15)
    assert (data.labels == 1).sum() == 357  # benign, the larger class


def test_synthetic_is_drawn_by_the_seed():
    data = synthetic(0)
    assert data.features.shape == (20, 10)
    assert set(data.labels) == {-1.0, 1.0}
    np.testing.assert_array_equal(data.features, synthetic(0).features)
    assert not np.array_equal(data.features, synthetic(1).features)


@pytest.mark.parametrize("name", ["rows", "rows.bz2"])
def test_libsvm_text_becomes_dense_rows(write, name):
    data = libsvm(write(FOUR_ROWS, name))
    np.testing.assert_array_equal(data.features, [[0.5, 0, -1], [0, 4, 0], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(data.labels, [1, -1, 1, -1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1:1\n1 1:2\n", "has 1 distinct labels, starting .*needs exactly two"),
        ("1 1:1\n2 1:2\n3 1:2\n", "has 3 distinct labels"),
        ("1 1:nan\n2 1:2\n", "NaN or infinite"),
        ("1 1:inf\n2 1:2\n", "NaN or infinite"),
        ("nan 1:1\n2 1:2\n", "NaN or infinite"),
        ("hello, world\n", "not a LIBSVM text file"),
        ("", "not a LIBSVM text file|0 distinct labels"),
    ],
)
def test_unusable_libsvm_files_are_refused(write, text, message):
    with pytest.raises(ConfigError, match=message):
        libsvm(write(text))


def test_a_broken_bz2_file_is_refused(write):
    path = write("1 1:1\n2 1:2\n", "rows.bz2")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match="not a LIBSVM text file"):
        libsvm(path)


def test_files_are_found_by_path_by_data_dir_and_by_environment(write, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDEF_DATA", raising=False)
    plain, packed = write(FOUR_ROWS, "plain"), write(FOUR_ROWS, "packed.bz2")
    assert find_file(str(plain), None) == plain
    assert find_file("plain", str(tmp_path)) == plain
    assert find_file("packed", str(tmp_path)) == packed
    assert find_file("packed.bz2", str(tmp_path)) == packed
    monkeypatch.setenv("FEDEF_DATA", str(tmp_path))
    assert find_file("packed", None) == packed


def test_a_missing_file_names_the_paths_tried_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDEF_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"tried 'nowhere'; .*data-dir= or .*FEDEF_DATA"):
        find_file("nowhere", None)
    with pytest.raises(ConfigError, match=r"nowhere', '.*nowhere\.bz2'"):
        binary_data("nowhere", data_dir=str(tmp_path), seed=0)


@pytest.mark.parametrize(
    ("name", "shape", "positive"),
    [
        ("breast-cancer_scale", (683, 10), 239),  # the larger label, 4, is malignant
        ("a1a", (1605, 119), 395),
        ("mushrooms", (8124, 112), 4208),
    ],
)
def test_published_files(data_dir, name, shape, positive):
    data = binary_data(name, data_dir=str(data_dir), seed=0)
    assert data.features.shape == shape
    assert (data.labels == 1).sum() == positive
