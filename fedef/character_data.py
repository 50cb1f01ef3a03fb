"""Text by speaker, as sequences of characters: Shakespeare's plays."""

from __future__ import annotations

import bz2
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedef.class_data import drawn_part, frozen
from fedef.datasets import find_file
from fedef.errors import ConfigError
from fedef.vectors import IntVector

SHAKESPEARE = "shakespeare"
SHAKESPEARE_FILE = "shakespeare_speakers.jsonl"

LENGTH = 80
"""Characters of a sequence, as in LEAF (arXiv:1812.01097) and FedAvg's paper."""

_HELD_OUT = 5
_MOST_CHARACTERS = 256

Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class CharacterData:
    """Sequences by speaker. The arrays are read-only."""

    train: Codes
    """(N, 81): a sequence's characters and the one after it, as places in the alphabet."""
    owners: IntVector
    """(N,) the speaker of each, from 0."""
    groups: IntVector
    """(N,) the play of each, from 0."""
    test: Codes
    """(M, 81)."""
    test_owners: IntVector
    """(M,)."""
    alphabet: str
    """Every character of the file, in ascending order."""

    def part(self, *, train_examples: int, seed: int) -> CharacterData:
        """A part of the training sequences, drawn uniformly; 0: all, in the file's order."""
        rows = drawn_part(len(self.train), train_examples, seed, "train", "the text")
        return replace(
            self,
            train=frozen(self.train[rows]),
            owners=frozen(self.owners[rows]),
            groups=frozen(self.groups[rows]),
        )


def character_data(name: str, *, data_dir: str | None) -> CharacterData:
    """The text called `name`, cut into sequences; the file is read once per process.

    A speaker's text is cut into stretches of 80 characters; a sequence is a stretch and the
    character after it, so that all but the first have a target before and after them. The last
    fifth of a speaker's sequences, rounded down, is the test, as in FedAvg's paper
    (arXiv:1602.05629, Sec. 3). What is left at the end of a text, and speakers with less than 81
    characters, give none. Not LEAF's file and not its numbers: there a character is predicted from
    the 80 before it, here each of the 80 from those before it in its sequence, as in FedAvg's.

    Parameters
    ----------
    name
        ``shakespeare``, the file shakespeare_speakers.jsonl; or another ``FILE.jsonl``. Each line
        is an object with the texts `user` and `text`, and maybe `play`; plain or ``.bz2``.
    data_dir
        Folder of the file; None: the environment variable FEDEF_DATA.

    Raises
    ------
    ConfigError
        If the file is missing or unusable, or no speaker has a sequence.
    """
    path = find_file(SHAKESPEARE_FILE if name == SHAKESPEARE else name, data_dir)
    return _read(path, path.stat().st_mtime_ns, path.stat().st_size)


# Time and size of the file are part of the key, so that a file that changed is read anew.
@lru_cache(maxsize=2)
def _read(path: Path, modified: int, size: int) -> CharacterData:
    speakers = _speakers(path)
    alphabet = "".join(sorted({character for _, text in speakers for character in text}))
    if len(alphabet) > _MOST_CHARACTERS:
        raise ConfigError(
            f"data: {str(path)!r} has {len(alphabet)} different characters, at most "
            f"{_MOST_CHARACTERS} fit; clean the text first"
        )
    place = {ord(character): number for number, character in enumerate(alphabet)}
    plays = {play: number for number, play in enumerate(sorted({play for play, _ in speakers}))}
    train: list[Codes] = []
    test: list[Codes] = []
    of: list[int] = []
    for play, text in speakers:
        count = (len(text) - 1) // LENGTH
        if count < 1:
            continue
        codes = np.frombuffer(text.translate(place).encode("latin-1"), dtype=np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(codes, LENGTH + 1)[::LENGTH]
        kept = count - count // _HELD_OUT
        train.append(windows[:kept])
        test.append(windows[kept:])
        of.append(plays[play])
    if not train:
        raise ConfigError(
            f"data: {str(path)!r} has no speaker with more than {LENGTH} characters; give more text"
        )
    speaker, kept_of, held_out_of = np.arange(len(of)), list(map(len, train)), list(map(len, test))
    return CharacterData(
        train=frozen(np.concatenate(train)),
        owners=frozen(np.repeat(speaker, kept_of)),
        groups=frozen(np.repeat(np.array(of), kept_of)),
        test=frozen(np.concatenate(test)),
        test_owners=frozen(np.repeat(speaker, held_out_of)),
        alphabet=alphabet,
    )


def _speakers(path: Path) -> list[tuple[str, str]]:
    """Play and text of each line."""
    try:
        raw = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
        lines = [json.loads(line) for line in raw.decode().splitlines()]
        found = [(str(line.get("play", "")), line["user"], line["text"]) for line in lines]
    except (OSError, ValueError, EOFError, LookupError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"data: {str(path)!r} is not a file of speakers ({error}); each line must be a JSON "
            'object like {"user": "...", "text": "..."}, plain or .bz2'
        ) from None
    users = [user for _, user, _ in found]
    if not all(isinstance(text, str) for _, *texts in found for text in texts):
        raise ConfigError(f"data: {str(path)!r}: user and text must be texts")
    if len(set(users)) != len(users):
        raise ConfigError(f"data: {str(path)!r} names a user twice; join each user's text")
    return [(play, text) for play, _, text in found]
