"""Next-character prediction on text by speaker: a small GRU or LSTM."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedef.character_data import LENGTH, SHAKESPEARE, character_data
from fedef.class_data import drawn_part
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.partitions import partition_for
from fedef.problems.files import read_initial_point, refuse_instance
from fedef.problems.images import evaluation_rows
from fedef.problems.torch_examples import examples_of
from fedef.problems.torch_problem import TorchProblem
from fedef.shared_rows import sizes_of
from fedef.torch_characters import char_gru, char_lstm

NETWORKS = {"char-gru": char_gru, "char-lstm": char_lstm}
"""By the problem's name."""

_ROWS_AT_ONCE = 250


def build(config: Config) -> TorchProblem:
    """Mean cross-entropy per character, over the sequences of 80 that `character_data` cuts.

    An example is a sequence. The accuracy is the share of characters that the largest score gets
    right, on the last fifth of the texts of those speakers who have examples. partitioner=natural
    gives a client whole speakers (neighbours in the file where num-clients is fewer),
    natural-largest the speakers with most text, one each; for others a sequence's class is its
    play.

    Raises
    ------
    ConfigError
        If the data do not fit the problem, are missing or unusable, or cannot be dealt to
        num-clients clients.
    """
    _check_keys(config)
    text = character_data(config.data, data_dir=config.data_dir)
    text = text.part(train_examples=config.train_examples, seed=config.seed)
    parts = partition_for(config, text.groups, text.owners)
    heard = text.owners if config.partitioner == "shared" else text.owners[np.concatenate(parts)]
    test = text.test[np.isin(text.test_owners, heard)]
    test = test[drawn_part(len(test), config.test_examples, config.seed, "test", "the text")]
    return TorchProblem(
        config.problem,
        module=partial(NETWORKS[config.problem], len(text.alphabet)),
        loss=_loss,
        clients=examples_of(text.train[:, :LENGTH], text.train[:, 1:], parts),
        test=(torch.tensor(test[:, :LENGTH]), torch.tensor(test[:, 1:])) if len(test) else None,
        seed=config.seed,
        x0=None if config.initial_point is None else read_initial_point(config.initial_point),
        rows_at_once=_ROWS_AT_ONCE,
        evaluated=evaluation_rows(sizes_of(parts), config.eval_examples, seed=config.seed),
        device=config.device,
    )


def _loss(scores: Tensor, following: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, 1), following.flatten().long())


def _check_keys(config: Config) -> None:
    refuse_instance(config)
    if config.data != SHAKESPEARE and not config.data.removesuffix(".bz2").endswith(".jsonl"):
        raise ConfigError(
            f"data: problem={config.problem} needs text by speaker, got {config.data!r}; set "
            f"data={SHAKESPEARE}, or FILE.jsonl"
        )
