"""The name of a run's folder: a hash of what decides the run's bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b, file_digest
from importlib.metadata import version
from pathlib import Path

import fedef
from fedef.character_data import SHAKESPEARE, SHAKESPEARE_FILE
from fedef.config import Config
from fedef.datasets import find_file
from fedef.errors import ConfigError
from fedef.image_data import HUGGING_FACE, IMAGE_SETS
from fedef.problems.life_expectancy import FILE as LIFE_EXPECTANCY

RUN_PATH = (
    "checkpoint.py",
    "engine.py",
    "inline_run.py",
    "memory.py",
    "run_loop.py",
    "sweeps/one_run.py",
)
"""What a run executes of this package."""

_FILE_KEYS = ("replay", "instance", "initial-point")
_FILES = {
    SHAKESPEARE: SHAKESPEARE_FILE,
    "breast_cancer": None,
    "synthetic": None,
    **{name: f"{name}.npz" for name in IMAGE_SETS},
}
"""Of the data sets that are not called as their files."""


def run_key(config: Config) -> str:
    """16 hex digits: of the configuration, of the content of its files and of `code_version`.

    Where the files are does not count. Of a data set on the Hub only the name does.
    """
    flat = config.to_flat()
    del flat["data-dir"]
    contents = {name: found for name, path in _files(config) if (found := _content(path))}
    text = json.dumps([flat, contents, code_version()], sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    """What the configuration names, whether it is there or not."""
    flat = config.to_flat()
    yield from ((key, Path(str(flat[key]))) for key in _FILE_KEYS if flat[key])
    reads_data = config.problem.startswith(("logistic", "image-", "resnet", "char-"))
    name = _FILES.get(config.data, config.data) if reads_data else None
    if config.problem == "dro":
        name = LIFE_EXPECTANCY
    if name is None:
        return
    if name.startswith(HUGGING_FACE):
        folder = Path(name.removeprefix(HUGGING_FACE))
        yield from ((str(path.relative_to(folder)), path) for path in sorted(folder.rglob("*")))
        return
    try:
        yield "data", find_file(name, config.data_dir)
    except ConfigError:  # the run will say so
        return


def _content(path: Path) -> str | None:
    """Hash of a file, which is read once while it stays as it is; None: it cannot be read."""
    try:
        about = path.stat()
        return _digest(path, about.st_mtime_ns, about.st_size) if path.is_file() else None
    except OSError:
        return None


@cache
def _digest(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, blake2b).hexdigest()


@cache
def code_version() -> str:
    """Hash of what decides a run's bits: the sources of fedef and of the engine, NumPy, torch."""
    digest = blake2b(digest_size=8)
    package, engine = Path(fedef.__file__).parent, Path(__file__).parents[1]
    sources = [*sorted(package.rglob("*.py")), *(engine / name for name in RUN_PATH)]
    for path in sources:
        name = path.relative_to(package.parent if package in path.parents else engine.parent)
        digest.update(f"{name.as_posix()}\n".encode() + path.read_bytes())
    digest.update(f"{version('numpy')} {version('torch')}".encode())
    return digest.hexdigest()
