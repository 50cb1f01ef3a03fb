"""Normalized steps as `torch.optim` optimizers, for a training loop that changes one line.

    x <- x - lr m / max(N + delta, tau)^beta

with N one norm over all parameters of all groups. `NormalizedSGD` divides by its own direction's
norm, `IANSGD` by that of an independent batch's gradient at the same x (arXiv:2410.14054).

====================== ============
symbol                 name
====================== ============
gamma                  lr
theta                  momentum
beta                   power
A                      norm_scale
delta                  offset
tau (1/Gamma)          threshold
====================== ============
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from fedef.errors import ConfigError, FedefError

Closure = Callable[[], Any]
"""Clears the gradients, computes a loss, calls its ``backward`` and returns it."""
_Move = tuple[dict[str, Any], Tensor, Tensor]
"""A parameter's group, the parameter, and the vector that it moves against."""

_ALLOWED: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: 0 <= value < math.inf, "finite and >= 0"),
    "momentum": (lambda value: 0 <= value < 1, "in [0, 1); 0 keeps none of the old direction"),
    "power": (lambda value: 0 <= value <= 1, "in [0, 1]; 0 is plain SGD, 1 divides by the norm"),
    "norm_scale": (lambda value: 0 < value < math.inf, "finite and > 0"),
    "offset": (lambda value: 0 <= value < math.inf, "finite and >= 0"),
    "threshold": (lambda value: 0 <= value < math.inf, "finite and >= 0; 0 never clips"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "finite and >= 0"),
    "max_step": (lambda value: value > 0, "> 0; inf is no cap"),
}


class _NormalizedOptimizer(Optimizer):
    """What both optimizers share: checked options, the finite gradient and the step."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options override the optimizer's.

        Raises
        ------
        ConfigError
            If an option is out of its range.
        """
        options = {**self.defaults, **param_group}
        for name, (allows, allowed) in _ALLOWED.items():
            if name in self.defaults and not allows(float(options[name])):
                raise ConfigError(
                    f"{type(self).__name__}: {name} must be {allowed}, got {options[name]}"
                )
        super().add_param_group(param_group)

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out because a gradient or the step was not finite.

        Part of ``state_dict``. Steps that a GradScaler leaves out never get here.
        """
        return max(int(group["skipped_steps"]) for group in self.param_groups)

    def _gradients(self, *, inverse_scale: float = 1.0) -> list[_Move]:
        """Gradients of f(x) + weight_decay ||x||^2 / 2 at all parameters that have one."""
        moves = []
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse or gradient.is_complex():
                    raise ConfigError(
                        f"{type(self).__name__}: gradients must be dense and real, got "
                        f"{gradient.layout} of {gradient.dtype}; use sparse=False and real "
                        "parameters, or another optimizer for these"
                    )
                if inverse_scale != 1.0:
                    gradient = gradient * inverse_scale
                if group["weight_decay"]:
                    gradient = gradient.add(parameter, alpha=float(group["weight_decay"]))
                moves.append((group, parameter, gradient))
        return moves

    def _move(self, moves: list[_Move], length: float) -> None:
        """``x <- x - lr m / max(A N + delta, tau)^beta``, cut to max_step; `length` is N."""
        rates = [_rate(group, length) for group, _, _ in moves]
        if any(rate > _largest_factor(x) for rate, (_, x, _) in zip(rates, moves, strict=True)):
            self._skip("the step divides by (almost) zero; set threshold or offset above 0")
            return
        cap = min(float(group["max_step"]) for group in self.param_groups)
        if cap < math.inf:
            step = math.hypot(
                *(rate * _norm([vector]) for rate, (_, _, vector) in zip(rates, moves, strict=True))
            )
            rates = [rate * cap / step for rate in rates] if step > cap else rates
        for (_, parameter, vector), rate in zip(moves, rates, strict=True):
            parameter.add_(vector, alpha=-rate)

    def _skip(self, reason: str) -> None:
        if any(group["error_if_nonfinite"] for group in self.param_groups):
            raise FedefError(
                f"{type(self).__name__}: {reason}; the parameters are as they were. "
                "error_if_nonfinite=False skips such steps and counts them"
            )
        for group in self.param_groups:
            group["skipped_steps"] += 1


class NormalizedSGD(_NormalizedOptimizer):
    """``m <- theta m + (1 - theta) g;  x <- x - lr m / max(||m|| + delta, tau)^beta``.

    ||EF21|| with one client (arXiv:2410.16871, Alg. 1) at theta = 0 and beta = 1; with theta, NSGD
    with momentum as published with arXiv:2410.14054: m_0 = g_0, and the norm is that of m over all
    parameters of all groups. Use one optimizer per group for norms of their own. beta < 1 and
    theta = 0 is AN-GD; beta = 1 and tau > 0 is clipped SGD with the step lr/tau.
    ||m|| = 0 leaves x unchanged, which the papers do not define.

    Every option but `params` may differ between parameter groups and be changed by a scheduler.
    Gradients may be accumulated over several ``backward``. A GradScaler works as with any other
    optimizer. Parameters without a gradient stay and do not count; an empty step does nothing.
    Norms are computed in float64, and the step waits for them to reach the host.

    Parameters
    ----------
    params
        Parameters or parameter groups.
    lr
        gamma: the step's length where beta = 1 and nothing is clipped.
    momentum
        theta, the weight of the old direction. The new gradient has 1 - theta, so that lr keeps
        its meaning; `torch.optim.SGD` gives it 1.
    power
        beta in [0, 1].
    offset
        delta, in units of the gradient.
    threshold
        tau, in units of the gradient.
    weight_decay
        lambda of the term lambda ||x||^2 / 2, added to the gradient before anything else.
    max_step
        The largest ||x_new - x|| over all parameters; the smallest of the groups' counts.
    error_if_nonfinite
        Raise instead of skipping a step whose gradient is NaN or infinite.

    Raises
    ------
    ConfigError
        If an option is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.0,
        power: float = 1.0,
        offset: float = 0.0,
        threshold: float = 0.0,
        weight_decay: float = 0.0,
        max_step: float = math.inf,
        error_if_nonfinite: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "power": power,
            "offset": offset,
            "threshold": threshold,
            "weight_decay": weight_decay,
            "max_step": max_step,
            "error_if_nonfinite": error_if_nonfinite,
            "skipped_steps": 0,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step along the gradients in ``.grad`` and return the closure's loss.

        Raises
        ------
        FedefError
            If the gradient is not finite and `error_if_nonfinite` is set; nothing has changed.
        ConfigError
            If a gradient is sparse or complex.
        """
        loss = _evaluated(closure)
        gradients = self._gradients()
        if not math.isfinite(_norm([gradient for _, _, gradient in gradients])):
            self._skip("a gradient is NaN or infinite")
            return loss
        moves = [(group, x, self._direction(group, x, g)) for group, x, g in gradients]
        length = _norm([direction for _, _, direction in moves])
        if length > 0:
            self._move(moves, length)
        return loss

    def _direction(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> Tensor:
        theta = float(group["momentum"])
        if theta == 0.0:
            return gradient
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = gradient.clone()
        else:
            state["momentum_buffer"].lerp_(gradient, 1 - theta)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


class IANSGD(_NormalizedOptimizer):
    """``x <- x - lr g / max(A ||g'|| + delta, tau)^beta``, g' of an independent batch at this x.

    IAN-SGD (arXiv:2410.14054; there gamma_p = lr / tau^beta and Gamma = 1/tau). With h the
    divisor, independence gives E[g / h] = grad f E[1/h]; the same batch's norm does not. The norm
    is over all parameters of all groups. The cap `max_step` is ours: for beta < 1 the published
    step has no bound, and diverges where the batch of g' misses a tail that g meets.

    Three ways to give the independent batch, all before the parameters move::

        optimizer.step(closure, independent_closure)

        optimizer.step_losses(loss, independent_loss)

        with optimizer.independent_pass():  # accumulation, GradScaler, any loop
            loss_of(model(other_inputs), other_targets).backward()
        loss_of(model(inputs), targets).backward()
        optimizer.step()

    The independent pass puts the gradients in ``.grad`` aside and back; run it before the other
    pass, so that only one set of gradients is alive. Parameter groups, schedulers, skipped steps
    and weight decay (in g and in g') are as in `NormalizedSGD`; there is no momentum.

    Parameters
    ----------
    params
        Parameters or parameter groups.
    lr
        gamma. With the default threshold of 1 it is SGD's where A ||g'|| + delta <= 1.
    power
        beta in [0, 1].
    norm_scale
        A = 1 / (1 - tau_1), for noise of tau_1 ||grad f|| + tau_2 at most.
    offset
        delta = tau_2 / (1 - tau_1), in units of the gradient.
    threshold
        tau, in units of the gradient. 0 divides by ||g'|| however small; with offset 0, a step
        whose g' is zero is then skipped.
    weight_decay, max_step, error_if_nonfinite
        As in `NormalizedSGD`.
    module
        The model, whose buffers (batch-norm statistics) `independent_pass` leaves untouched; None:
        the pass updates them like any other.

    Raises
    ------
    ConfigError
        If an option is out of its range.
    """

    _module: nn.Module | None = None
    _independent_norm: float | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        power: float = 2 / 3,
        norm_scale: float = 2.0,
        offset: float = 0.0,
        threshold: float = 1.0,
        weight_decay: float = 0.0,
        max_step: float = math.inf,
        error_if_nonfinite: bool = False,
        module: nn.Module | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "power": power,
            "norm_scale": norm_scale,
            "offset": offset,
            "threshold": threshold,
            "weight_decay": weight_decay,
            "max_step": max_step,
            "error_if_nonfinite": error_if_nonfinite,
            "skipped_steps": 0,
        }
        super().__init__(params, defaults)
        self._module = module

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_module": self._module}

    @contextmanager
    def independent_pass(self, *, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """Measure ||g'|| of what is accumulated in ``.grad`` inside the block, for the next step.

        Parameters that the optimizer does not hold keep what the block adds to their ``.grad``.

        Parameters
        ----------
        scaler
            The GradScaler that scaled the losses inside the block. Where they overflow, its scale
            is lowered here, since ``scaler.step`` never sees these gradients.

        Raises
        ------
        ConfigError
            If the block ends without a gradient.
        """
        parameters = self._parameters()
        aside = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        self._independent_norm = None
        try:
            with nullcontext() if self._module is None else frozen_statistics(self._module):
                yield
            self._independent_norm = self._measured(scaler)
        finally:
            for parameter, gradient in zip(parameters, aside, strict=True):
                parameter.grad = gradient

    @torch.no_grad()
    def _measured(self, scaler: torch.amp.GradScaler | None) -> float:
        scale = 1.0 if scaler is None else scaler.get_scale()
        gradients = [gradient for _, _, gradient in self._gradients(inverse_scale=1.0 / scale)]
        if not gradients:
            raise ConfigError(
                "IANSGD: the independent pass computed no gradient; call backward() in it"
            )
        length = _norm(gradients)
        if scaler is not None and not math.isfinite(length):
            scaler.update(scale * scaler.get_backoff_factor())
        return length

    @torch.no_grad()
    def step(
        self, closure: Closure | None = None, independent_closure: Closure | None = None
    ) -> Any:
        """Take one step along the gradients in ``.grad`` and return the closure's loss.

        The independent closure runs first, in an `independent_pass`; without one, such a pass has
        to come before each step.

        Raises
        ------
        ConfigError
            If there was no independent pass since the last step, or a gradient is sparse or
            complex.
        FedefError
            If a gradient or the step is not finite and `error_if_nonfinite` is set.
        """
        if independent_closure is not None:
            with torch.enable_grad(), self.independent_pass():
                independent_closure()
        if self._independent_norm is None:
            raise ConfigError(
                "IANSGD: no independent batch since the last step; pass an independent closure, or "
                "run backward() under independent_pass() before each step"
            )
        loss = _evaluated(closure)
        length, self._independent_norm = self._independent_norm, None
        moves = self._gradients()
        if math.isfinite(length) and math.isfinite(_norm([gradient for _, _, gradient in moves])):
            self._move(moves, length)
        else:
            self._skip("a gradient is NaN or infinite")
        return loss

    def step_losses(self, loss: Tensor, independent_loss: Tensor) -> None:
        """Differentiate both losses and take one step; ``.grad`` then holds the first's gradient.

        The forward passes are over by now: compute the independent one under `frozen_statistics`
        where the model keeps statistics. The losses may share a graph.

        Raises
        ------
        ConfigError, FedefError
            As `step`.
        """
        inputs = [parameter for parameter in self._parameters() if parameter.requires_grad]
        with self.independent_pass():
            torch.autograd.backward(independent_loss, inputs=inputs, retain_graph=True)
        self.zero_grad()
        torch.autograd.backward(loss, inputs=inputs)
        self.step()

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let forward passes in the block leave no trace in the buffers of `module`.

    The block works on copies and the module gets its own tensors back, so a ``backward`` after
    the block still finds what its ``forward`` saw. Batch norm in training mode is as usual.
    """
    places = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False, remove_duplicate=False)
    ]
    copies = {id(buffer): buffer.clone() for _, _, buffer in places}
    try:
        for owner, name, buffer in places:
            setattr(owner, name, copies[id(buffer)])
        yield
    finally:
        for owner, name, buffer in places:
            setattr(owner, name, buffer)


def _rate(group: dict[str, Any], length: float) -> float:
    """``lr / max(A N + delta, tau)^beta``; inf where that divides by zero."""
    scaled = float(group.get("norm_scale", 1.0)) * length
    denominator = max(scaled + float(group["offset"]), float(group["threshold"]))
    divisor = denominator ** float(group["power"])
    return float(group["lr"]) / divisor if divisor > 0 else math.inf


def _largest_factor(parameter: Tensor) -> float:
    """Largest factor of an in-place addition: torch computes narrow types in float32."""
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return torch.finfo(wide).max


def _norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all tensors together, in float64 where the device has it."""
    if not tensors:
        return 0.0
    first = tensors[0].device
    dtype = torch.float32 if first.type == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(tensor, dtype=dtype).to(first) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _evaluated(closure: Closure | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
