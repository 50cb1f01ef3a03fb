"""An existing federated app as a problem: its pseudo-gradients go through error feedback.

A client that starts from x and ends at x_i has moved by its pseudo-gradient x - x_i. FedAvg is the
step x <- x - mean_i (x - x_i); here the mean is of what error feedback keeps of it, so that with
the identity compressor and all clients the result is FedAvg's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.compressors import NAMES, make_compressor
from fedef.directions import Direction
from fedef.errors import ConfigError, CorruptPayload
from fedef.estimators import Accumulated, Fresh
from fedef.local_steps import LocalSteps
from fedef.methods import Method
from fedef.problems.base import Evaluation, LocalResult, Smoothness
from fedef.sampling import StreamSampler
from fedef.schedules import constant
from fedef.steppers import IncrementStep, ScheduledStep
from fedef.value_formats import FORMATS
from fedef.vectors import IntVector, Layout, Vector

Named = Mapping[str, NDArray[Any]]
PLAN, HELLO = "fedef-plan", "fedef-hello"
"""Names of the records that carry a plan, and that ask a node which client it is."""
FEEDBACKS = ("ef14", "ef21", "norm-ef21")
STATISTICS = ("running_mean", "running_var")
"""Last parts of the names of floating-point arrays that are averaged densely: batch norm's."""


@dataclass(frozen=True)
class Plan:
    """What both sides must agree on; the server makes it, each task carries it."""

    names: tuple[str, ...]
    """The model's arrays, in the app's order."""
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    """NumPy's names."""
    dense: tuple[str, ...]
    """Arrays that bypass compression and are averaged: integers, and batch norm's statistics."""
    feedback: str
    """ef14: the sum of what was not sent is added to the next message (Seide et al. 2014), run as
    EF21 of the running sum of pseudo-gradients. ef21, norm-ef21: EF21 of the last one."""
    compressor: str
    k_fraction: float
    value_format: str
    step_size: float
    """Of the server; 1 is FedAvg's."""
    seed: int
    num_clients: int
    weighted_by: str
    """Name of the metric that says how much a client counts."""
    arrays_key: str
    """Name of the record in which the app expects the model."""
    config_key: str

    @classmethod
    def of(
        cls,
        arrays: Named,
        *,
        feedback: str,
        compressor: str,
        k_fraction: float,
        value_format: str,
        statistics: Sequence[str] = STATISTICS,
        **rest: Any,
    ) -> Plan:
        """Plan for a model.

        Raises
        ------
        ConfigError
            If an array is neither of a floating-point nor of an integer type, none is trained, or
            a setting is not known.
        """
        _require_one_of("feedback", feedback, FEEDBACKS)
        _require_one_of("compressor", compressor, NAMES)
        _require_one_of("value_format", value_format, tuple(FORMATS))
        if not 0 < k_fraction <= 1:
            raise ConfigError(f"k_fraction: must be in (0, 1], got {k_fraction!r}")
        for name, array in arrays.items():
            if array.dtype.kind not in "fiu":
                raise ConfigError(
                    f"array {name!r} has dtype {array.dtype}; error feedback carries real and "
                    "integer numbers: leave it out of the arrays that are sent"
                )
        dense = tuple(
            name
            for name, array in arrays.items()
            if array.dtype.kind in "iu" or name.rpartition(".")[2] in statistics
        )
        if not set(arrays) - set(dense):
            raise ConfigError(
                f"initial_arrays: none of {list(arrays)} is a trained floating-point array; "
                "pass the model's state_dict"
            )
        return cls(
            names=tuple(arrays),
            shapes=tuple(tuple(map(int, array.shape)) for array in arrays.values()),
            dtypes=tuple(array.dtype.name for array in arrays.values()),
            dense=dense,
            feedback=feedback,
            compressor=compressor,
            k_fraction=k_fraction,
            value_format=value_format,
            **rest,
        )

    def to_json(self) -> str:
        """Text that `from_json` turns back into this plan."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Inverse of `to_json` for received text.

        Raises
        ------
        CorruptPayload
            If it is not a plan.
        """
        try:
            facts = json.loads(text)
            for key in ("names", "dtypes", "dense"):
                facts[key] = tuple(map(str, facts[key]))
            facts["shapes"] = tuple(tuple(map(int, shape)) for shape in facts["shapes"])
            return cls(**facts)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptPayload(
                f"plan: not understood ({error!r}); use the same fedef on both sides"
            ) from None

    @cached_property
    def run_id(self) -> int:
        """63 bits of a hash of the plan."""
        return int.from_bytes(blake2b(self.to_json().encode(), digest_size=8).digest()) >> 1

    @cached_property
    def trained(self) -> Layout:
        """Where each compressed array lies in x."""
        return self._layout(lambda name: name not in self.dense)

    @cached_property
    def averaged(self) -> Layout:
        """Where each other array lies in the buffers."""
        return self._layout(lambda name: name in self.dense)

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        """float64 where the model has such an array, else float32."""
        return np.dtype(np.float64 if "float64" in self.dtypes else np.float32)

    def split(self, arrays: Named) -> tuple[Vector, Vector]:
        """Flatten a model into x (d,) and buffers (b,).

        Raises
        ------
        ConfigError
            If names, shapes or types differ from the plan's, or an integer does not fit.
        """
        if set(arrays) != set(self.names):
            missing, extra = set(self.names) - set(arrays), set(arrays) - set(self.names)
            raise ConfigError(
                f"the app returned other arrays than it got: missing {sorted(missing)}, "
                f"added {sorted(extra)}; return the whole state_dict"
            )
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            array = arrays[name]
            if tuple(array.shape) != shape or np.dtype(dtype).kind != array.dtype.kind:
                raise ConfigError(
                    f"the app returned array {name!r} as {array.dtype}{tuple(array.shape)}, "
                    f"it got {dtype}{shape}; error feedback needs the model to keep its form"
                )
            largest = int(np.abs(array).max(initial=0)) if array.dtype.kind in "iu" else 0
            if largest > 2 ** (np.finfo(self.dtype).nmant + 1):
                raise ConfigError(
                    f"integer array {name!r} holds {largest}, which {self.dtype} cannot carry; "
                    "leave it out of the arrays that are sent"
                )
        x = self.trained.flatten({n: arrays[n] for n in self.trained.names}, self.dtype)
        kept = self.averaged.flatten({n: arrays[n] for n in self.averaged.names}, self.dtype)
        return x, kept

    def join(self, x: Vector, buffers: Vector) -> dict[str, NDArray[Any]]:
        """Return the model by its arrays' names, in their own types; integers are rounded."""
        parts = {**self.trained.unflatten(x), **self.averaged.unflatten(buffers)}
        joined = {}
        for name, dtype in zip(self.names, self.dtypes, strict=True):
            whole = np.dtype(dtype).kind in "iu"
            part = np.rint(parts[name]) if whole else parts[name]
            joined[name] = np.asarray(part, dtype=dtype)
        return joined

    def method(self) -> Method:
        """Return the pieces of the method."""
        schedule = constant(self.step_size)
        unit = self.feedback == "norm-ef21"
        plain = ScheduledStep(schedule, Direction("unit" if unit else "plain"))
        summed = self.feedback == "ef14"
        return Method(
            name=self.feedback,
            estimator=Accumulated() if summed else Fresh(),
            local_steps=LocalSteps(1, constant(0.0)),
            sampler=StreamSampler(self.seed, {"minibatch": 0}),
            feedback=True,
            compressor=make_compressor(
                self.compressor, self.trained.dimension, k_fraction=self.k_fraction
            ),
            stepper=IncrementStep(schedule) if summed else plain,
            value_format=FORMATS[self.value_format],
            dense_start=False,
        )

    def _layout(self, chosen: Callable[[str], bool]) -> Layout:
        pairs = [(n, s) for n, s in zip(self.names, self.shapes, strict=True) if chosen(n)]
        return Layout(tuple(n for n, _ in pairs), tuple(s for _, s in pairs))


class AdoptedProblem:
    """f_i is unknown; its "gradient" at x is the pseudo-gradient of the app's own training.

    Parameters
    ----------
    plan
        The model's form.
    initial
        x^0 (d,) and buffers (b,).
    train
        From a model to the trained model, by their arrays' names. Only clients have it.
    """

    name = "adopted"
    smoothness: Smoothness | None = None

    def __init__(
        self,
        plan: Plan,
        initial: tuple[Vector, Vector] | None = None,
        train: Callable[[Named], Named] | None = None,
    ) -> None:
        self._plan, self._train = plan, train
        nothing = np.zeros(plan.averaged.dimension, dtype=plan.dtype)
        self._initial = initial or (np.zeros(plan.trained.dimension, dtype=plan.dtype), nothing)

    @property
    def dimension(self) -> int:
        """Number of trained entries."""
        return self._plan.trained.dimension

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The plan's."""
        return self._plan.dtype

    @property
    def num_examples(self) -> tuple[int, ...]:
        """Zeros: how much a client counts is said by the app's own metric."""
        return (0,) * self._plan.num_clients

    def initial_point(self) -> Vector:
        """x^0."""
        return self._initial[0].copy()

    def initial_buffers(self) -> Vector:
        """The model's."""
        return self._initial[1].copy()

    def named_arrays(self, x: Vector, buffers: Vector) -> dict[str, Vector]:
        """Return the model by its arrays' names."""
        return self._plan.join(x, buffers)

    def local(
        self, client: int, x: Vector, *, rows: IntVector | None = None, buffers: Vector
    ) -> LocalResult:
        """Let the app train from x; the loss is among its own metrics, here it is 0.

        Raises
        ------
        ConfigError
            If the app returned something else than a model of the same form.
        """
        if self._train is None:
            raise ConfigError("adopted: only a client can train")
        trained, kept = self._plan.split(self._train(self._plan.join(x, buffers)))
        return LocalResult(0.0, np.subtract(x, trained, out=trained), kept)

    def evaluate(self, x: Vector, *, weights: Vector, buffers: Vector) -> Evaluation:
        """Nothing is known here; the app evaluates by its own messages."""
        return Evaluation(0.0, None, None)


def _require_one_of(what: str, got: str, allowed: Sequence[str]) -> None:
    if got not in allowed:
        raise ConfigError(f"{what}: must be one of {', '.join(allowed)}, got {got!r}")
