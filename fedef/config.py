"""The one configuration: flat, frozen, strict.

The same keys serve the command line, TOML files and Flower's ``[tool.flwr.app.config]``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedef.errors import ConfigError
from fedef.keys import explain, kebab
from fedef.keys import unset as _unset
from fedef.service import Service

OUT_KEY = "out"
"""Key of the run's folder, one of `Service`'s."""

_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_Fraction = Annotated[float, Field(gt=0, le=1)]
_OptionalCount = Annotated[_Count | None, BeforeValidator(_unset)]
_OptionalText = Annotated[str | None, BeforeValidator(_unset)]


class Config(BaseModel):
    """Everything that decides the bits of a run. Keys are spelled in kebab-case outside."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=kebab, allow_inf_nan=False, strict=False
    )

    method: Literal[
        "ef21",
        "norm-ef21",
        "ef21-sgdm",
        "norm-ef21-sgdm",
        "gd",
        "sgd",
        "an-gd",
        "clip-gd",
        "clip-sgd",
        "nsgd",
        "nsgdm",
        "spider",
        "ian-sgd",
        "adam",
        "adagrad-norm",
        "fedavg",
    ] = Field(
        "norm-ef21-sgdm", description="||EF21|| is norm-ef21; -sgdm adds momentum at the clients"
    )
    compressor: Annotated[
        Literal["identity", "top-k", "rand-k"] | None, BeforeValidator(_unset)
    ] = Field(
        None,
        description="what a client sends; not set: top-k with error feedback, else identity",
    )
    k: _OptionalCount = Field(None, description="entries sent; when set, k-fraction is not used")
    k_fraction: _Fraction = Field(0.01, description="entries sent over d: k = max(1, floor(h d))")
    value_format: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        "auto", description="values on the wire; auto: the problem's own type"
    )
    init: Literal["zero", "full"] = Field(
        "zero", description="a client's first message: compressed (zero) or dense (full)"
    )
    feedback: Annotated[Literal["ef21", "none"] | None, BeforeValidator(_unset)] = Field(
        None, description="error feedback, or none; not set: the method's"
    )
    direction: Annotated[
        Literal["plain", "unit", "power", "clip", "independent", "remembered"] | None,
        BeforeValidator(_unset),
    ] = Field(None, description="the server's; not set: the method's")
    beta: Annotated[_Fraction | None, BeforeValidator(_unset)] = Field(
        None, description="power of the norm that is divided by; not set: the method's"
    )
    delta: _NotNegative = Field(0.0, description="added to that norm")
    tau: _NotNegative = Field(1.0, description="its least value (clip, independent)")
    amplification: _Positive = Field(2.0, description="A: factor of the independent norm")
    max_step: Annotated[_Positive | None, BeforeValidator(_unset)] = Field(
        None, description="bound on the length of a step; not set: none"
    )
    cap: Annotated[Annotated[float, Field(ge=1)] | None, BeforeValidator(_unset)] = Field(
        None, description="longest step over the first one (independent, remembered); ours"
    )
    independent_batch_size: Annotated[int, Field(ge=0)] = Field(
        0, description="rows of the independent gradient; 0: all"
    )
    independent_summary: Annotated[Literal["sketch", "norm"] | None, BeforeValidator(_unset)] = (
        Field(
            None,
            description="what clients send of it: a linear sketch, or its norm alone; "
            "not set: norm for one client, where it is exact, else sketch",
        )
    )
    sketch_size: _Count = Field(256, description="numbers in a sketch")
    spider_period: _Count = Field(59, description="rounds between SPIDER's full gradients")
    replay: _OptionalText = Field(None, description="npz file of recorded rows, see the README")
    schedule: Literal["constant", "inv-sqrt", "horizon", "theory", "auto"] = Field(
        "inv-sqrt",
        description="gamma; gamma/sqrt(k+1); gamma/sqrt(K+1); the theorem's own; from the run",
    )
    step_size: _Positive = Field(1.0, description="gamma or gamma_0; not used by schedule=theory")
    momentum_eta: _Fraction = Field(
        0.1, description="eta of v <- (1-eta) v + eta grad (the -sgdm methods); 1: no momentum"
    )
    local_batch_size: Annotated[int, Field(ge=0)] = Field(
        0, description="rows per gradient, drawn without replacement; 0: the client's whole data"
    )
    local_steps: _Count = Field(
        1, description="E: SGD steps of a client in a round; it sends the sum of their gradients"
    )
    local_step_size: Annotated[_Positive | None, BeforeValidator(_unset)] = Field(
        None,
        description="of the local steps; fedavg: not set, step-size, and the server takes the mean "
        "of the models; set, step-size scales the server's move, 1: the mean of the models",
    )
    weight_decay: _NotNegative = Field(
        0.0, description="lambda: every gradient gets lambda x added; not part of the reported loss"
    )
    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="weights w_i of the clients in f = sum w_i f_i"
    )
    buffers: Literal["average", "local"] = Field(
        "average",
        description="batch-norm statistics: averaged densely, or kept by each client (then no one "
        "model can be evaluated: loss and accuracy are null)",
    )
    problem: Literal[
        "polynomial",
        "logistic",
        "phase-retrieval",
        "dro",
        "digits-softmax",
        "digits-mlp",
        "image-softmax",
        "image-mlp",
        "image-cnn",
        "resnet20",
        "resnet20-gn",
        "resnet18",
        "char-gru",
        "char-lstm",
    ] = Field("digits-mlp", description="what is minimized")
    l0: _Positive = Field(4.0, description="L0 of the polynomial")
    l1: _Positive = Field(1.0, description="L1 of the polynomial")
    data: str = Field(
        "breast_cancer",
        description="logistic: breast_cancer, synthetic, a LIBSVM file, or its name in data-dir; "
        "image-* and resnet*: mnist, fashion_mnist, cifar10, FILE.npz or hf:NAME (Hugging Face); "
        "char-*: shakespeare or FILE.jsonl",
    )
    data_subset: _OptionalText = Field(None, description="hf: the data set's configuration")
    train_split: str = Field("train", description="hf: split to train on", min_length=1)
    test_split: _OptionalText = Field("test", description="hf: split to test on; '': none")
    feature_column: _OptionalText = Field(
        None, description="hf: column of images or vectors; not set: the plain one"
    )
    label_column: _OptionalText = Field(
        None, description="hf: column of classes; not set: the plain one"
    )
    client_column: _OptionalText = Field(
        None, description="hf: column of natural clients, for partitioner=natural"
    )
    data_dir: _OptionalText = Field(None, description="folder of data files (or FEDEF_DATA)")
    train_examples: Annotated[int, Field(ge=0)] = Field(
        0, description="training images used, drawn by the seed; 0: all"
    )
    test_examples: Annotated[int, Field(ge=0)] = Field(
        0, description="test images used, drawn by the seed; 0: all"
    )
    eval_examples: Annotated[int, Field(ge=0)] = Field(
        0,
        description="training images that an evaluation uses: its loss and gradient norm are then "
        "estimates; 0: all",
    )
    normalize: bool = Field(
        False, description="colour images: subtract ImageNet's mean, divide by its deviation"
    )
    regularization: Annotated[float, Field(ge=0)] = Field(
        0.1, description="lambda of the logistic problem's nonconvex regularizer"
    )
    instance: _OptionalText = Field(None, description="npz file that holds the problem's numbers")
    instance_seed: Annotated[
        Annotated[int, Field(ge=0, lt=2**32)] | None, BeforeValidator(_unset)
    ] = Field(
        None, description="of the data of phase-retrieval and dro; not set: the published instance"
    )
    initial_point: _OptionalText = Field(None, description="npz file with the array x0")
    warm_start: bool = Field(
        True,
        description="phase-retrieval, dro: start where the paper's stochastic methods do (z1, x1), "
        "not where its deterministic ones do (z0, x0)",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where networks run; the same seed gives other bits on another device"
    )
    num_clients: _Count = Field(10, description="n")
    partitioner: Literal[
        "iid", "dirichlet", "pathological", "contiguous", "natural", "natural-largest", "shared"
    ] = Field(
        "dirichlet",
        description="how examples are dealt to clients; natural: by the data's own ones (countries "
        "of dro, speakers, hf, npz), neighbours together where num-clients is fewer; "
        "natural-largest: the largest of them alone; shared: each client draws client-examples "
        "rows from all",
    )
    client_examples: _Count = Field(
        20, description="rows of each client (shared); clients may hold the same ones"
    )
    dirichlet_alpha: _Positive = Field(0.1, description="small: each client sees few classes")
    classes_per_client: _Count = Field(2, description="for the pathological partitioner")
    min_partition_size: Annotated[int, Field(ge=0)] = Field(
        1, description="examples that each client has at least (dirichlet)"
    )
    participation: _Fraction = Field(1.0, description="share of the clients asked each round")
    max_norm_factor: Annotated[Annotated[float, Field(ge=1)] | None, BeforeValidator(_unset)] = (
        Field(
            None,
            description="refuse updates longer than this many times the round's median, from three "
            "updates on; clients that join late send more than others; not set: no bound",
        )
    )
    num_rounds: _Count = Field(200, description="K")
    stop_uplink_bytes: _OptionalCount = Field(
        None, description="end after the round in which all clients together have sent these bytes"
    )
    stop_accuracy: Annotated[_Fraction | None, BeforeValidator(_unset)] = Field(
        None, description="end after the evaluated round that reaches this test accuracy"
    )
    stop_gradient_norm: Annotated[_Positive | None, BeforeValidator(_unset)] = Field(
        None, description="end after the evaluated round whose gradient norm is no larger"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of every random stream")
    eval_every: Annotated[int, Field(ge=0)] = Field(
        1, description="rounds between evaluations of the whole model; 0: only at the end"
    )
    batched: bool = Field(
        False,
        description="gradients of a round's clients in one pass where the problem can, for many "
        "tiny clients; true: other last bits, by who is computed with whom; Flower: one by one",
    )
    heterogeneity_every: Annotated[int, Field(ge=0)] = Field(
        0,
        description="rounds between measurements of zeta^2 = sum_i w_i ||grad f_i - grad f||^2, "
        "also at the start and the end (one full gradient of every client each; not by Flower); "
        "0: none",
    )

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Config:
        """Configuration from kebab-case keys.

        Raises
        ------
        ConfigError
            For an unknown key (the nearest known one is named) or a value out of range.
        """
        known = known_keys()
        for key, value in values.items():
            if key not in known:
                near = _nearest(key.replace("_", "-"), known)
                hint = f"did you mean {near!r}?" if near else "see 'fedef keys' for all of them"
                raise ConfigError(f"unknown key {key!r}; {hint}")
            if isinstance(value, bool) and not isinstance(_default(key), bool):
                raise ConfigError(f"{key}: takes no true or false, got {value!r}; see 'fedef keys'")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("; ".join(explain(cls, item) for item in error.errors())) from None

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Config:
        """Configuration in a Flower app's run config, which also holds `Service`'s keys.

        Raises
        ------
        ConfigError
            As `from_flat`.
        """
        service = Service.known_keys()
        return cls.from_flat({key: v for key, v in run_config.items() if key not in service})

    def to_flat(self) -> dict[str, bool | int | float | str]:
        """The same configuration as plain values under kebab-case keys; '' stands for not set."""
        return {
            key: "" if value is None else value
            for key, value in self.model_dump(by_alias=True).items()
        }


def known_keys() -> list[str]:
    """All keys in kebab-case, in the order of the class."""
    return [kebab(name) for name in Config.model_fields]


def _nearest(word: str, known: list[str]) -> str | None:
    """The known key that begins with `word`, else the most similar one."""
    begins = [key for key in known if len(word) > 2 and key.startswith(word)]
    return next(iter(begins or get_close_matches(word, known, n=1, cutoff=0.5)), None)


def _default(key: str) -> Any:
    return Config.model_fields[key.replace("-", "_")].default


def read_toml(path: str | Path) -> dict[str, Any]:
    """Flat keys of a TOML file.

    Raises
    ------
    ConfigError
        If the file is missing or is not TOML.
    """
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r}: {error.strerror}; check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} is not valid TOML: {error}") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``["k=10", "method=ef21"]`` to flat keys; values are read as TOML, else taken as text.

    Raises
    ------
    ConfigError
        If an item is not ``key=value``, or a key is given twice.
    """
    values: dict[str, Any] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"expected key=value, got {item!r}; for example num-rounds=50")
        if key in values:
            raise ConfigError(f"{key}: given twice, as {values[key]!r} and {text!r}; keep one")
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values
