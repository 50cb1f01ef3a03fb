"""Durable files: whole or not there, and no changed byte goes unseen."""

import os
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedef.durable import read_arrays, write_arrays, write_atomically
from fedef.errors import ConfigError

ARRAYS = {
    "g": np.array([0.1, -0.0, 5e-324]),
    "v": np.array([1.5, np.nan, np.inf], dtype=np.float32),
    "indices": np.array([3, 2**40], dtype=np.int64),
    "facts": np.frombuffer(b'{"round": 3}', dtype=np.uint8),
    "buffers": np.empty(0, dtype=np.float32),
    "scalar": np.array(2.5),
}
FEW = {name: ARRAYS[name] for name in ("g", "scalar")}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same(back, arrays):
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_round_trip_bit_for_bit(tmp_path):
    path = tmp_path / "state.fdf"
    write_arrays(path, ARRAYS)
    assert_same(read_arrays(path), ARRAYS)
    write_arrays(path, {})
    assert read_arrays(path) == {}
    assert names(tmp_path) == ["state.fdf"]


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=6).filter(
            lambda name: name != "__metadata__"
        ),
        arrays(
            st.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
            array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
        ),
        max_size=4,
    )
)
def test_round_trip_of_any_names_and_shapes(tmp_path_factory, named):
    path = tmp_path_factory.getbasetemp() / "any.fdf"
    write_arrays(path, named)
    assert_same(read_arrays(path), named)


def test_views_are_written_by_value(tmp_path):
    matrix = np.arange(12.0).reshape(3, 4)
    views = {"transposed": matrix.T, "strided": matrix[:, ::2], "reversed": matrix[0, ::-1]}
    write_arrays(tmp_path / "views.fdf", views)
    assert_same(read_arrays(tmp_path / "views.fdf"), views)


def test_every_changed_byte_is_seen(tmp_path):
    path = tmp_path / "state.fdf"
    write_arrays(path, FEW)
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(ConfigError, match=r"'.*state\.fdf' is corrupt: its checksum"):
            read_arrays(path)
    path.write_bytes(data)
    assert_same(read_arrays(path), FEW)


def test_every_truncation_and_an_extension_are_seen(tmp_path):
    path = tmp_path / "state.fdf"
    write_arrays(path, FEW)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ConfigError, match=r"'.*state\.fdf' is corrupt"):
            read_arrays(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ConfigError, match=r"'.*state\.fdf' is corrupt"):
        read_arrays(path)


def test_a_file_with_a_checksum_but_foreign_content_is_refused(tmp_path):
    path = tmp_path / "state.fdf"
    for body in (b"", b"not safetensors", b"\xff" * 20):
        path.write_bytes(b"FDFSTATE" + blake2b(body, digest_size=16).digest() + body)
        with pytest.raises(ConfigError, match=r"'.*state\.fdf' is not fedef's"):
            read_arrays(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'.*none\.fdf': No such file .*; check the path"):
        read_arrays(tmp_path / "none.fdf")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_arrays(tmp_path)


# --- atomic writes -------------------------------------------------------------------------------


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a"
    for data in (b"long content", b"", b"short"):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path, monkeypatch, failing
):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(type(path), "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_write_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    """fsync of the data, rename, fsync of the folder: in this order, or a crash can lose both."""
    events = []
    path = tmp_path / "a"
    real_fsync, real_replace = os.fsync, type(path).replace

    def fsync(descriptor):
        link = f"/proc/self/fd/{descriptor}"
        events.append(
            ("fsync", os.path.basename(os.readlink(link)) if os.path.exists(link) else "")
        )
        real_fsync(descriptor)

    def replace(self, target):
        assert self.read_bytes() == b"new"
        assert self.parent == path.parent
        events.append(("replace", target.name))
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(type(path), "replace", replace)
    write_atomically(path, b"new")
    assert [event for event, _ in events] == ["fsync", "replace", "fsync"]
    if events[0][1]:
        assert events[0][1].endswith(".part")
        assert events[2][1] == tmp_path.name


def test_a_missing_folder_is_the_operating_system_s_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a", b"data")
