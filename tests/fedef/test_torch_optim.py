"""The torch optimizers against the formulas in NumPy, and what a training loop expects of them."""

import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedef.errors import ConfigError, FedefError
from fedef.torch_optim import IANSGD, NormalizedSGD, frozen_statistics

STEPS = 8
WEIGHT_DECAY = 0.1


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def normed_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def batch(index, rows=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 + index)
    inputs = torch.randn(rows, 5, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(3, (rows,), generator=generator)


def loss_of(module, index, **options):
    inputs, targets = batch(index, dtype=next(module.parameters()).dtype, **options)
    return functional.cross_entropy(module(inputs), targets)


def flat(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach().double().numpy().copy()


def gradient_at(x, index, weight_decay=0.0):
    """Gradient of batch `index` at the flat x, by a net of its own."""
    module = net()
    nn.utils.vector_to_parameters(torch.tensor(x), module.parameters())
    loss_of(module, index).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in module.parameters()]).numpy()
    return gradient + weight_decay * x


def close(module, x):
    np.testing.assert_allclose(flat(module), x, rtol=0, atol=1e-6)


def closure_for(module, optimizer, index):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(module, index)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.75, "offset": 1e-8},
        {"momentum": 0.5, "power": 2 / 3, "weight_decay": WEIGHT_DECAY},
        {"threshold": 0.6},
        {"power": 0.0, "momentum": 0.9},
        {"max_step": 0.05},
    ],
    ids=str,
)
def test_normalized_sgd_equals_the_formula(options, dtype):
    module = net(dtype)
    optimizer = NormalizedSGD(module.parameters(), 0.1, **options)
    theta, beta = options.get("momentum", 0.0), options.get("power", 1.0)
    delta, tau = options.get("offset", 0.0), options.get("threshold", 0.0)
    x, m = flat(module), None
    for t in range(STEPS):
        closure_for(module, optimizer, t)()
        optimizer.step()
        g = gradient_at(x, t, options.get("weight_decay", 0.0))
        m = g if m is None else theta * m + (1 - theta) * g
        step = 0.1 * m / max(np.linalg.norm(m) + delta, tau) ** beta
        x = x - step * min(1.0, options.get("max_step", np.inf) / np.linalg.norm(step))
        close(module, x)
    assert optimizer.skipped_steps == 0


IAN_OPTIONS = [
    {},
    {"threshold": 0.0, "power": 1.0, "norm_scale": 1.0},
    {"threshold": 0.1, "offset": 0.1, "weight_decay": WEIGHT_DECAY},
    {"threshold": 0.0, "max_step": 0.05},
]


def ian_reference(x, t, *, power=2 / 3, norm_scale=2.0, offset=0.0, threshold=1.0, **rest):
    g = gradient_at(x, t, rest.get("weight_decay", 0.0))
    other = gradient_at(x, 100 + t, rest.get("weight_decay", 0.0))
    h = max(norm_scale * np.linalg.norm(other) + offset, threshold)
    step = 0.1 * g / h**power
    return x - step * min(1.0, rest.get("max_step", np.inf) / np.linalg.norm(step))


@pytest.mark.parametrize("form", ["closures", "losses", "pass before", "pass after"])
@pytest.mark.parametrize("options", IAN_OPTIONS, ids=str)
def test_iansgd_equals_the_formula_in_every_form(options, form):
    module = net()
    optimizer = IANSGD(module.parameters(), 0.1, **options)
    x = flat(module)
    for t in range(STEPS):
        direction = closure_for(module, optimizer, t)
        independent = closure_for(module, optimizer, 100 + t)
        if form == "closures":
            loss = optimizer.step(direction, independent)
            assert loss.requires_grad
        elif form == "losses":
            optimizer.step_losses(loss_of(module, t), loss_of(module, 100 + t))
        elif form == "pass before":
            with optimizer.independent_pass():
                independent()
            direction()
            optimizer.step()
        else:
            direction()
            with optimizer.independent_pass():
                independent()
            optimizer.step()
        x = ian_reference(x, t, **options)
        close(module, x)


def test_gradients_stay_those_of_the_direction():
    module = net()
    optimizer = IANSGD(module.parameters(), 0.1)
    for step in (
        lambda: optimizer.step_losses(loss_of(module, 0), loss_of(module, 1)),
        lambda: optimizer.step(
            closure_for(module, optimizer, 0), closure_for(module, optimizer, 1)
        ),
    ):
        expected = gradient_at(flat(module), 0)
        step()
        kept = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
        np.testing.assert_allclose(kept.numpy(), expected, atol=1e-14)


def test_step_losses_reach_only_the_parameters_that_the_optimizer_holds():
    module = net()
    optimizer = IANSGD(module[2].parameters(), 0.1)
    optimizer.step_losses(loss_of(module, 0), loss_of(module, 1))
    assert module[0].weight.grad is None


def test_two_losses_may_share_a_graph():
    module, reference = net(), net()
    inputs, targets = batch(0)
    outputs = module(inputs)
    IANSGD(module.parameters(), 0.1).step_losses(
        functional.cross_entropy(outputs[:8], targets[:8]),
        functional.cross_entropy(outputs[8:], targets[8:]),
    )
    IANSGD(reference.parameters(), 0.1).step_losses(
        functional.cross_entropy(reference(inputs[:8]), targets[:8]),
        functional.cross_entropy(reference(inputs[8:]), targets[8:]),
    )
    np.testing.assert_allclose(flat(module), flat(reference), atol=1e-14)


def test_closure_form_of_normalized_sgd_returns_the_loss():
    module, reference = net(), net()
    optimizer = NormalizedSGD(module.parameters(), 0.1, momentum=0.5)
    other = NormalizedSGD(reference.parameters(), 0.1, momentum=0.5)
    for t in range(3):
        loss = optimizer.step(closure_for(module, optimizer, t))
        assert loss.item() == closure_for(reference, other, t)().item()
        other.step()
    np.testing.assert_array_equal(flat(module), flat(reference))


def test_groups_share_one_norm_and_have_their_own_learning_rates():
    module = net()
    optimizer = NormalizedSGD(
        [
            {"params": module[0].parameters(), "lr": 0.2},
            {"params": module[2].parameters(), "momentum": 0.5, "weight_decay": WEIGHT_DECAY},
        ],
        0.1,
    )
    x, m = flat(module), None
    first = sum(p.numel() for p in module[0].parameters())
    lr = np.where(np.arange(x.size) < first, 0.2, 0.1)
    theta = np.where(np.arange(x.size) < first, 0.0, 0.5)
    decay = np.where(np.arange(x.size) < first, 0.0, WEIGHT_DECAY)
    for t in range(STEPS):
        optimizer.step(closure_for(module, optimizer, t))
        g = gradient_at(x, t) + decay * x
        m = g if m is None else theta * m + (1 - theta) * g
        x = x - lr * m / np.linalg.norm(m)
        close(module, x)


def test_the_cap_bounds_the_step_over_all_groups():
    module = net()
    groups = [
        {"params": module[0].parameters(), "lr": 5.0, "max_step": 0.25},
        {"params": module[2].parameters()},
    ]
    optimizer = IANSGD(groups, 1.0, threshold=0.0, max_step=0.5)
    for t in range(STEPS):
        before = flat(module)
        optimizer.step(closure_for(module, optimizer, t), closure_for(module, optimizer, 100 + t))
        np.testing.assert_allclose(np.linalg.norm(flat(module) - before), 0.25, rtol=1e-12)


def test_a_group_added_later_takes_part():
    module = net()
    optimizer = NormalizedSGD(module[0].parameters(), 0.1)
    optimizer.add_param_group({"params": module[2].parameters()})
    x = flat(module)
    optimizer.step(closure_for(module, optimizer, 0))
    g = gradient_at(x, 0)
    close(module, x - 0.1 * g / np.linalg.norm(g))


def test_parameters_without_a_gradient_stay_and_do_not_count():
    module = net()
    module[0].requires_grad_(False)
    optimizer = NormalizedSGD(module.parameters(), 0.1, momentum=0.9)
    x = flat(module)
    optimizer.step(closure_for(module, optimizer, 0))
    trained = np.arange(x.size) >= sum(p.numel() for p in module[0].parameters())
    g = np.where(trained, gradient_at(x, 0), 0.0)
    close(module, x - 0.1 * g / np.linalg.norm(g))
    module.requires_grad_(False)
    optimizer.zero_grad()
    x = flat(module)
    optimizer.step()
    np.testing.assert_array_equal(flat(module), x)


def test_a_zero_gradient_leaves_x_unchanged():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    optimizer = NormalizedSGD([parameter], 0.1)
    optimizer.step()
    assert parameter.tolist() == [1, 1, 1]
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_squares_beyond_the_type_are_no_trouble(dtype):
    size = torch.finfo(dtype).max / 4
    parameter = nn.Parameter(torch.zeros(2, dtype=dtype))
    parameter.grad = torch.tensor([0.6 * size, -0.8 * size], dtype=dtype)
    NormalizedSGD([parameter], 1.0).step()
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        parameter.detach().double(), torch.tensor([-0.6, 0.8]).double(), atol=tolerance, rtol=0
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=STEPS + 1),
    ],
    ids=["step", "cosine", "one cycle, with momentum"],
)
def test_schedulers_set_the_length_of_the_step(scheduler):
    module = net()
    optimizer = NormalizedSGD(module.parameters(), 0.1, momentum=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = scheduler(optimizer)
        lengths = []
        for t in range(STEPS):
            before, lr = flat(module), schedule.get_last_lr()[0]
            optimizer.step(closure_for(module, optimizer, t))
            schedule.step()
            lengths.append(lr)
            np.testing.assert_allclose(np.linalg.norm(flat(module) - before), lr, rtol=1e-9)
    assert len(set(lengths)) > 2


def test_schedulers_count_step_losses_as_steps():
    module = net()
    optimizer = IANSGD(module.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(2):
            optimizer.step_losses(loss_of(module, t), loss_of(module, 100 + t))
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_a_learning_rate_may_be_a_tensor():
    module, reference = net(), net()
    for changed, lr in ((module, torch.tensor(0.125)), (reference, 0.125)):
        optimizer = NormalizedSGD(changed.parameters(), lr)
        optimizer.step(closure_for(changed, optimizer, 0))
    np.testing.assert_array_equal(flat(module), flat(reference))


def accumulate(module, optimizer, index, parts):
    inputs, targets = batch(index)
    size = len(targets) // parts
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        (functional.cross_entropy(module(inputs[rows]), targets[rows]) / parts).backward()


@pytest.mark.parametrize("make", [NormalizedSGD, IANSGD])
def test_accumulated_gradients_equal_the_big_batch(make):
    runs = []
    for parts in (1, 4):
        module = net()
        optimizer = make(module.parameters(), 0.1)
        for t in range(STEPS):
            optimizer.zero_grad()
            if make is IANSGD:
                with optimizer.independent_pass():
                    accumulate(module, optimizer, 100 + t, parts)
            accumulate(module, optimizer, t, parts)
            optimizer.step()
        runs.append(flat(module))
    np.testing.assert_allclose(runs[0], runs[1], rtol=0, atol=1e-12)


def run(module, optimizer, start, stop):
    for t in range(start, stop):
        if isinstance(optimizer, IANSGD):
            optimizer.step(
                closure_for(module, optimizer, t), closure_for(module, optimizer, 100 + t)
            )
        else:
            optimizer.step(closure_for(module, optimizer, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda p, **o: NormalizedSGD(p, 0.1, momentum=0.9, **o),
        lambda p, **o: IANSGD(p, 0.1, **o),
    ],
    ids=["NormalizedSGD", "IANSGD"],
)
def test_a_stored_state_continues_bit_for_bit(make, dtype):
    whole = net(dtype)
    run(whole, make(whole.parameters()), 0, STEPS)

    first = net(dtype)
    optimizer = make(first.parameters())
    run(first, optimizer, 0, STEPS // 2)
    optimizer._skip("counted once")
    file = io.BytesIO()
    torch.save({"module": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)

    second = net(dtype)
    second.load_state_dict(stored["module"])
    resumed = make(second.parameters(), weight_decay=0.5)
    resumed.load_state_dict(stored["optimizer"])
    run(second, resumed, STEPS // 2, STEPS)
    np.testing.assert_array_equal(flat(second), flat(whole))
    assert resumed.skipped_steps == 1


def test_a_copied_optimizer_has_the_copied_module():
    module = normed_net()
    pair = copy.deepcopy((module, IANSGD(module.parameters(), 0.1, module=module)))
    before = pair[0][1].running_mean.clone()
    with pair[1].independent_pass():
        loss_of(pair[0], 0).backward()
    torch.testing.assert_close(pair[0][1].running_mean, before, rtol=0, atol=0)


@pytest.mark.parametrize("make", [NormalizedSGD, IANSGD])
def test_a_gradscaler_run_equals_the_unscaled_run(make):
    """Scales are powers of two, so scaling changes no bit as long as nothing overflows."""
    runs = []
    for enabled in (True, False):
        module = net(torch.float32)
        optimizer = make(module.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, growth_interval=3)
        for t in range(STEPS):
            if make is IANSGD:
                with optimizer.independent_pass(scaler=scaler):
                    scaler.scale(loss_of(module, 100 + t)).backward()
            optimizer.zero_grad()
            scaler.scale(loss_of(module, t)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.skipped_steps == 0
        assert (scaler.get_scale() > 65536) == enabled
        runs.append(flat(module))
    np.testing.assert_array_equal(runs[0], runs[1])


def test_autocast_with_a_scaler_and_clipping_by_hand():
    module = net(torch.float32)
    optimizer = IANSGD(module.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, other = loss_of(module, 0), loss_of(module, 1)
        with optimizer.independent_pass(scaler=scaler):
            scaler.scale(other).backward()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert optimizer.skipped_steps == 0


def test_a_scaler_skips_before_the_optimizer_and_lowers_its_scale():
    module = net(torch.float32)
    optimizer = NormalizedSGD(module.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(module, 0)).backward()
    module[0].weight.grad[0, 0] = math.inf
    before = flat(module)
    scaler.step(optimizer)
    scaler.update()
    np.testing.assert_array_equal(flat(module), before)
    assert scaler.get_scale() == 32768
    assert optimizer.skipped_steps == 0


def test_an_overflow_of_the_independent_pass_lowers_the_scale_until_it_fits():
    module = net(torch.float32)
    optimizer = IANSGD(module.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = flat(module)
    for skipped in (1, 2, 2):
        with optimizer.independent_pass(scaler=scaler):
            scaler.scale(loss_of(module, 1)).backward()
            if scaler.get_scale() > 16384:
                module[0].weight.grad[0, 0] = math.inf
        optimizer.zero_grad()
        scaler.scale(loss_of(module, 0)).backward()
        assert (flat(module) == before).all()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.skipped_steps == skipped
    assert scaler.get_scale() == 16384
    assert not (flat(module) == before).all()


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad):
    module = net()
    optimizer = NormalizedSGD(module.parameters(), 0.1, momentum=0.5)
    run(module, optimizer, 0, 2)
    clean = copy.deepcopy(module), copy.deepcopy(optimizer.state_dict())
    closure_for(module, optimizer, 2)()
    module[2].bias.grad[0] = bad
    optimizer.step()
    assert optimizer.skipped_steps == 1
    run(module, optimizer, 3, 5)
    reference = NormalizedSGD(clean[0].parameters(), 0.1)
    reference.load_state_dict(clean[1])
    run(clean[0], reference, 3, 5)
    np.testing.assert_array_equal(flat(module), flat(clean[0]))


@pytest.mark.parametrize("where", ["direction", "independent"])
@pytest.mark.parametrize("bad", BAD)
def test_iansgd_skips_where_either_gradient_is_not_finite(bad, where):
    module = net()
    optimizer = IANSGD(module.parameters(), 0.1)
    before = flat(module)
    with optimizer.independent_pass():
        loss_of(module, 1).backward()
        if where == "independent":
            module[0].bias.grad[0] = bad
    loss_of(module, 0).backward()
    if where == "direction":
        module[0].bias.grad[0] = bad
    optimizer.step()
    np.testing.assert_array_equal(flat(module), before)
    assert optimizer.skipped_steps == 1


def test_on_request_a_step_that_is_not_finite_raises():
    module = net()
    optimizer = NormalizedSGD(module.parameters(), 0.1, error_if_nonfinite=True)
    loss_of(module, 0).backward()
    module[0].bias.grad[0] = math.nan
    before = flat(module)
    with pytest.raises(FedefError, match=r"NormalizedSGD: a gradient is NaN or infinite; .*skips"):
        optimizer.step()
    np.testing.assert_array_equal(flat(module), before)
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize(
    ("make", "gradient"),
    [
        (lambda p: NormalizedSGD(p, 1.0), 1e-44),
        (lambda p: IANSGD(p, 1.0, threshold=0.0, power=1.0), 0.0),
    ],
    ids=["almost zero", "zero"],
)
def test_a_step_that_divides_by_nothing_is_skipped(make, gradient):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = make([parameter])
    if isinstance(optimizer, IANSGD):
        with optimizer.independent_pass():
            (parameter * gradient).sum().backward()
        parameter.grad = torch.ones(2)
    else:
        parameter.grad = torch.full((2,), gradient)
    optimizer.step()
    assert parameter.tolist() == [1, 1]
    assert optimizer.skipped_steps == 1


def statistics(module):
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def stop_after(_):
    raise ValueError("stop")


def independent_by_closure(module, optimizer):
    optimizer.step(closure_for(module, optimizer, 0), closure_for(module, optimizer, 1))


def independent_by_losses(module, optimizer):
    with frozen_statistics(module):
        independent_loss = loss_of(module, 1)
    optimizer.step_losses(loss_of(module, 0), independent_loss)


def independent_by_pass(module, optimizer):
    with optimizer.independent_pass():
        loss_of(module, 1).backward()
    closure_for(module, optimizer, 0)()
    optimizer.step()


@pytest.mark.parametrize(
    "step", [independent_by_closure, independent_by_losses, independent_by_pass]
)
def test_the_independent_pass_leaves_batch_statistics_alone(step):
    module, once = normed_net(), normed_net()
    step(module, IANSGD(module.parameters(), 0.1, module=module))
    loss_of(once, 0)
    for name, value in statistics(once).items():
        assert torch.equal(statistics(module)[name], value), name
    assert module[1].num_batches_tracked.item() == 1


def test_without_the_module_the_independent_pass_counts():
    module = normed_net()
    independent_by_closure(module, IANSGD(module.parameters(), 0.1))
    assert module[1].num_batches_tracked.item() == 2


def test_frozen_statistics_keep_the_tensors_and_the_training_forward():
    module, plain = normed_net(), normed_net()
    held = dict(module.named_buffers())
    before = statistics(module)
    with frozen_statistics(module):
        assert loss_of(module, 0).item() == loss_of(plain, 0).item()
        assert module[1].num_batches_tracked.item() == 1
    for name, buffer in module.named_buffers():
        assert buffer is held[name]
        assert torch.equal(buffer, before[name])
    assert set(module.state_dict()) == set(plain.state_dict())


def test_frozen_statistics_come_back_after_an_error():
    module = normed_net()
    held, before = dict(module.named_buffers()), statistics(module)
    with pytest.raises(ValueError, match="stop"), frozen_statistics(module):
        stop_after(loss_of(module, 0))
    assert all(buffer is held[name] for name, buffer in module.named_buffers())
    assert torch.equal(module[1].running_mean, before["1.running_mean"])


def test_an_independent_pass_that_fails_puts_the_gradients_back():
    module = net()
    optimizer = IANSGD(module.parameters(), 0.1)
    loss_of(module, 0).backward()
    held = [p.grad for p in module.parameters()]
    with optimizer.independent_pass():
        loss_of(module, 1).backward()
    with pytest.raises(ValueError, match="stop"), optimizer.independent_pass():
        stop_after(loss_of(module, 1).backward())
    assert all(p.grad is g for p, g in zip(module.parameters(), held, strict=True))
    with pytest.raises(ConfigError, match="no independent batch"):
        optimizer.step()


def test_each_step_needs_an_independent_batch_of_its_own():
    module = net()
    optimizer = IANSGD(module.parameters(), 0.1)
    with pytest.raises(ConfigError, match="IANSGD: no independent batch since the last step"):
        optimizer.step(closure_for(module, optimizer, 0))
    run(module, optimizer, 0, 1)
    before = flat(module)
    with pytest.raises(ConfigError, match=r"run backward\(\) under independent_pass\(\)"):
        optimizer.step()
    np.testing.assert_array_equal(flat(module), before)
    with (
        pytest.raises(ConfigError, match=r"computed no gradient; call backward\(\)"),
        optimizer.independent_pass(),
    ):
        loss_of(module, 1)


@pytest.mark.parametrize("make", [NormalizedSGD, IANSGD])
@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("lr", -0.1, "finite and >= 0, got -0.1"),
        ("lr", math.nan, "finite and >= 0, got nan"),
        ("lr", torch.tensor(-1.0), "finite and >= 0"),
        ("power", 1.5, r"in \[0, 1\]"),
        ("offset", -1.0, "finite and >= 0"),
        ("threshold", -1.0, "finite and >= 0"),
        ("weight_decay", -1.0, "finite and >= 0"),
        ("max_step", 0.0, "> 0"),
    ],
)
def test_bad_options_are_refused(make, option, value, allowed):
    parameter = nn.Parameter(torch.ones(2))
    message = f"{make.__name__}: {option} must be {allowed}"
    with pytest.raises(ConfigError, match=message):
        make([parameter], **{"lr": 0.1, option: value})
    with pytest.raises(ConfigError, match=message):
        make([{"params": [parameter], option: value}], lr=0.1)


def test_options_of_one_optimizer_only():
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match=r"NormalizedSGD: momentum must be in \[0, 1\)"):
        NormalizedSGD([parameter], 0.1, momentum=1.0)
    with pytest.raises(ConfigError, match="IANSGD: norm_scale must be finite and > 0"):
        IANSGD([parameter], 0.1, norm_scale=0.0)


def test_sparse_and_complex_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match=r"dense and real, got .*sparse_coo"):
        NormalizedSGD(embedding.parameters(), 0.1).step()
    parameter = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    parameter.grad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(ConfigError, match=r"dense and real, got .*complex64"):
        NormalizedSGD([parameter], 0.1).step()
