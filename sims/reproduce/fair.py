"""The fair protocol beside the reproduction of arXiv:2410.14054: what tuning alike leaves of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedef.threads import single_threaded
from sims.fair_protocol import (
    INSTANCES,
    REPORTED_SEEDS,
    STEPS,
    TUNING_SEEDS,
    Row,
    controls,
    grids,
    median_interval,
    published,
    report,
    sign_test,
    tune,
)
from sims.ian_loop import Settings as Constants
from sims.ian_loop import arena
from sims.reproduce.study import (
    IAN,
    Comparison,
    Curve,
    Finding,
    Panel,
    Settings,
    Study,
    numerus,
    of,
)
from sims.reproduce.verdict import Check

_LEVEL = 0.05
_IAN, _CLIP, _SGD = "IAN-SGD", "Clip SGD", "SGD"
_CAPPED, _MEMORY = "IAN-SGD, capped (ours)", "memory, capped (ours)"
_OURS = (_CAPPED, _MEMORY)
_OWN, _FULL = "norm of the same batch", "norm of the full gradient"
_COLORS = {_SGD: 5, "NSGD": 2, "NSGDm": 3, _CLIP: 0, "SPIDER": 4, _IAN: 1}
_TITLES = {"phase-retrieval": "Phase retrieval", "dro": "DRO"}


@dataclass(frozen=True)
class Extent:
    """How much is run."""

    instances: int
    """Of each problem, the published one first."""
    steps: int
    """See `fair_protocol.STEPS`."""
    tuning_seeds: int
    reported_seeds: int = len(REPORTED_SEEDS)
    budget_share: float = 1.0


FULL = Extent(instances=3, steps=STEPS, tuning_seeds=len(TUNING_SEEDS))
QUICK = Extent(instances=2, steps=6, tuning_seeds=6)


@dataclass(frozen=True)
class Outcome:
    """One instance."""

    problem: str
    instance: int
    tuned: dict[str, Row]
    """By method."""
    controls: dict[str, dict[str, Row]]
    """By the constants that they share (`tuned`, `published`), then by what is normalized with."""

    @property
    def papers(self) -> list[Row]:
        """The tuned methods without ours."""
        return [row for method, row in self.tuned.items() if method not in _OURS]


def study(settings: Settings, *, extent: Extent | None = None) -> Study:
    """Tune, report and control on every instance of both problems."""
    extent = extent or (QUICK if settings.quick else FULL)
    plan = [(p, instance) for p in INSTANCES for instance in INSTANCES[p][: extent.instances]]
    outcomes = []
    with single_threaded():
        for place, (problem, instance) in enumerate(plan):
            settings.tell(f"{_TITLES[problem]}, instance {instance}", place / len(plan))
            outcomes.append(_outcome(problem, instance, extent, settings.data_folder))
    grid = len(grids("dro", steps=extent.steps)[_IAN])
    n = numerus(extent.reported_seeds, "seed", "seeds")
    tuning = f"{TUNING_SEEDS.start} to {TUNING_SEEDS.start + extent.tuning_seeds - 1}"
    return Study(
        name="fair",
        paper=IAN,
        title="The fair protocol",
        about="Phase retrieval and DRO again, every method tuned alike: the same powers β (1 and "
        f"2/3), {grid} settings for each (steps, and thresholds, momenta or periods), chosen by "
        f"the worst of the seeds {tuning}, then run from {n} that chose nothing, to the same "
        "number of gradient evaluations. None of this is in the paper.",
        findings=tuple(_findings(outcomes)),
        panels=tuple(
            _panel(outcome, n)
            for outcome in outcomes
            if outcome.instance == INSTANCES[outcome.problem][0]
        ),
        comparisons=tuple(
            comparison
            for problem in INSTANCES
            for comparison in _comparisons([o for o in outcomes if o.problem == problem], n)
        ),
        settings=(
            "Run on whole arrays (sims/ian_loop.py); tests compare every kind of method with the "
            "inline engine on the same rows. All methods of one batch size see the same batches.",
            f"seeds 0 to {extent.reported_seeds - 1} reported, {tuning} tuned with; instances "
            + "; ".join(
                f"{p}: {', '.join(map(str, INSTANCES[p][: extent.instances]))}" for p in _TITLES
            ),
            *(
                f"{_TITLES[o.problem]}, instance {o.instance}: "
                + "; ".join(
                    f"{method}: {describe(row.settings)}"
                    + (" (an end of the grid)" if row.at_edge else "")
                    for method, row in o.tuned.items()
                )
                for o in outcomes
            ),
        ),
        notes=(
            "A step of IAN-SGD costs B + B' gradients, a SPIDER difference two for each row; the "
            "papers count the latter once. The norm of the full gradient is an oracle: its "
            "evaluations are shown in the table and not charged.",
            "Intervals: the order statistics that cover the median with at least 95 % (the 6th and "
            "15th of 20); a run that diverged or never arrives counts as infinite. Sign tests are "
            "two-sided, paired by seed, at 5 %, not corrected for their number.",
            "Constant steps only, and one criterion (the worst tuning seed): other schedules or "
            "criteria may order the methods otherwise.",
        ),
    )


def _outcome(problem: str, instance: int, extent: Extent, data_dir: str) -> Outcome:
    where = arena(problem, instance, data_dir or None)
    where = replace(where, budget=round(where.budget * extent.budget_share))
    if problem == "dro":
        where = replace(where, log_every=10)
    choices = grids(problem, steps=extent.steps)
    seeds, tuning = REPORTED_SEEDS[: extent.reported_seeds], TUNING_SEEDS[: extent.tuning_seeds]
    chosen = {method: tune(grid, where, seeds=tuning) for method, grid in choices.items()}
    rows = report(chosen, where, tuned_on=choices, seeds=seeds)
    tuned = {row.method: row for row in rows}
    sets = {"tuned": chosen[_IAN], "published": published(problem)}
    others = {
        kind: {
            row.method: row
            for row in report(
                {
                    _IAN: ian,
                    **controls(ian, where),
                    _CAPPED: replace(ian, cap=2.0),
                    _MEMORY: replace(ian, norm="previous", cap=2.0, idle_rows=ian.rows(where)[1]),
                },
                where,
                seeds=seeds,
            )
        }
        for kind, ian in sets.items()
    }
    return Outcome(problem, instance, tuned, others)


# --- what the numbers say ---


def _findings(outcomes: list[Outcome]) -> Iterable[Finding]:
    yield from (_lead(outcomes, problem) for problem in _TITLES)
    yield _beyond_sgd(outcomes)
    yield from (_independence(outcomes, kind) for kind in ("tuned", "published"))
    yield _oracle(outcomes)
    yield from _robust(outcomes)
    yield _ours(outcomes)


def _lead(outcomes: list[Outcome], problem: str) -> Finding:
    mine = [o for o in outcomes if o.problem == problem]
    others = [min((row for row in o.papers if row.method != _IAN), key=_middle) for o in mine]
    pairs = list(zip(mine, others, strict=True))
    wins = sum(_middle(o.tuned[_IAN]) <= _middle(row) for o, row in pairs)
    shown = "; ".join(
        f"instance {o.instance}: IAN-SGD {_number(_middle(o.tuned[_IAN]))}, "
        f"{row.method} {_number(_middle(row))}"
        for o, row in pairs
    )
    measure = "fewest gradients to f ≤ 10" if problem == "phase-retrieval" else "lowest Ψ"
    return Finding(
        wins == len(mine),
        f"{_TITLES[problem]}: with every method tuned alike IAN-SGD is the best of the paper's "
        f"methods ({measure}, median). It is on {of(wins, len(mine))} instances; with the best of "
        f"the others: {shown}.",
    )


def _beyond_sgd(outcomes: list[Outcome]) -> Finding:
    ahead = sum(
        _middle(o.tuned[_SGD]) > min(_middle(o.tuned[m]) for m in (_CLIP, "NSGD", _IAN))
        for o in outcomes
    )
    return Finding(
        ahead == len(outcomes),
        "Tuned normalization or clipping (the best of NSGD, Clip SGD and IAN-SGD) beats tuned SGD: "
        f"on {of(ahead, len(outcomes))} instances.",
    )


def _independence(outcomes: list[Outcome], kind: str) -> Finding:
    tests = [sign_test(o.controls[kind][_IAN], o.controls[kind][_OWN]) for o in outcomes]
    better = sum(p < _LEVEL and lower > higher for lower, higher, p in tests)
    worse = sum(p < _LEVEL and lower < higher for lower, higher, p in tests)
    whose = {"tuned": "its own tuned", "published": "its published"}[kind]
    return Finding(
        better == len(tests),
        f"Independence itself helps: at {whose} constants IAN-SGD beats the same step with the "
        f"norm of the same batch. Sign tests over seeds: better on {of(better, len(tests))} "
        f"instances, worse on {worse}, undecided on {len(tests) - better - worse}.",
    )


def _oracle(outcomes: list[Outcome]) -> Finding:
    tests = [sign_test(o.controls["tuned"][_FULL], o.controls["tuned"][_OWN]) for o in outcomes]
    better = sum(p < _LEVEL and lower > higher for lower, higher, p in tests)
    worse = sum(p < _LEVEL and lower < higher for lower, higher, p in tests)
    return Finding(
        better == len(tests),
        "A perfect norm would help: with the norm of the full gradient, free of charge, the same "
        f"step beats the norm of the same batch on {of(better, len(tests))} instances, and loses "
        f"on {worse}.",
    )


def _robust(outcomes: list[Outcome]) -> Iterable[Finding]:
    methods = list(outcomes[0].tuned)
    lost = {m: sum(o.tuned[m].diverged for o in outcomes) for m in methods}
    runs = sum(len(o.tuned[_IAN].runs) for o in outcomes)
    others = ", ".join(f"{m} {n}" for m, n in lost.items() if m != _IAN)
    yield Finding(
        lost[_IAN] == 0,
        f"Tuned IAN-SGD does not diverge. It does in {of(lost[_IAN], runs)} runs on seeds that did "
        f"not choose it, its largest transient is {_number(_worst(outcomes, _IAN))}; the others: "
        f"{others}.",
    )
    fixed = [o.controls["published"] for o in outcomes if o.problem == "dro"]
    gone = sum(rows[_IAN].diverged for rows in fixed)
    total = sum(len(rows[_IAN].runs) for rows in fixed)
    kept = sum(rows[m].diverged for rows in fixed for m in _OURS)
    yield Finding(
        kept == 0,
        f"DRO at the published constants: IAN-SGD diverges in {of(gone, total)} runs. With a cap "
        f"of twice the first step (ours), with and without memory, {of(kept, 2 * total)} do.",
    )


def _ours(outcomes: list[Outcome]) -> Finding:
    calm = all(o.tuned[m].diverged == 0 for o in outcomes for m in _OURS)
    ahead = {m: sum(_middle(o.tuned[m]) <= _middle(o.tuned[_IAN]) for o in outcomes) for m in _OURS}
    shown = "; ".join(f"{m}: on {of(n, len(outcomes))} instances" for m, n in ahead.items())
    return Finding(
        calm and all(n == len(outcomes) for n in ahead.values()),
        "Our capped rules, tuned the same way, never diverge and have no worse median than "
        f"IAN-SGD. No worse median: {shown}.",
    )


# --- numbers ---


def _middle(row: Row) -> float:
    return median_interval(row.scores)[0]


def _worst(outcomes: list[Outcome], method: str) -> float:
    return max(o.tuned[method].worst for o in outcomes)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "never" if value > 0 else str(value)
    return f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.4g}"


def describe(constants: Constants) -> str:
    """The constants that are not the defaults."""
    shown = {
        "γ": constants.step_size,
        "β": constants.beta,
        "τ": constants.tau,
        "θ": constants.momentum,
        "q": constants.spider_period or 0.0,
    }
    return " ".join(f"{name}={value:.3g}" for name, value in shown.items() if value)


def _spread(values: Iterable[float]) -> str:
    middle, low, high = median_interval(list(values))
    if math.isinf(low):
        return "never"
    return f"{_number(middle)} [{_number(low)}, {_number(high)}]"


def _comparisons(outcomes: list[Outcome], n: str) -> Iterable[Comparison]:
    problem = outcomes[0].problem
    title = _TITLES[problem]
    rows = {m: [o.tuned[m] for o in outcomes] for m in outcomes[0].tuned}
    if problem == "phase-retrieval":
        yield Comparison(
            f"{title}: gradient evaluations to f ≤ 10. Median and its interval over n = {n} on "
            "each instance; runs that get there in brackets.",
            tuple(_cells(rows, lambda row: f"{_spread(row.arrivals)} ({_reached(row)})")),
        )
    symbol = "f" if problem == "phase-retrieval" else "Ψ"
    caption = (
        f"{title}: {symbol} at {outcomes[0].tuned[_IAN].where.budget:,} gradient evaluations. "
        f"Median and its interval over n = {n} on each instance, a diverged run counted as "
        "infinite; diverged: over all instances; worst: the largest value on the way of any run."
    )
    yield Comparison(caption, tuple(_cells(rows, _end, totals=True)))
    controlled = {
        f"{kind}, {name}": [o.controls[kind][name] for o in outcomes]
        for kind in ("tuned", "published")
        for name in outcomes[0].controls[kind]
    }
    yield Comparison(
        f"Controls on {title}: IAN-SGD's constants (its tuned ones, then the published ones) and "
        "its number of steps, with another norm or a cap. " + caption.partition(": ")[2],
        tuple(_cells(controlled, _end, totals=True)),
    )


def _cells(
    rows: Mapping[str, Sequence[Row]], shown: Callable[[Row], str], *, totals: bool = False
) -> Iterable[Check]:
    for name, of_instances in rows.items():
        for row in of_instances:
            yield _cell(name, f"instance {row.where.instance_seed}", shown(row))
        if totals:
            runs = sum(len(row.runs) for row in of_instances)
            yield _cell(name, "diverged", of(sum(row.diverged for row in of_instances), runs))
            worst = max(row.worst for row in of_instances)
            yield _cell(name, "worst", "inf" if math.isinf(worst) else f"{worst:.3g}")
            yield _cell(name, "evaluations", f"{of_instances[0].computed:,}")


def _cell(what: str, part: str, ours: str) -> Check:
    return Check(what, "", "", ours, None, part=part)


def _end(row: Row) -> str:
    middle, low, high = median_interval(row.finals)
    if math.isinf(low):
        return "diverged"
    return f"{_value(middle)} [{_value(low)}, {_value(high)}]"


def _value(value: float) -> str:
    return "diverged" if math.isinf(value) else f"{value:.4g}"


def _reached(row: Row) -> str:
    return of(int(np.isfinite(row.arrivals).sum()), len(row.runs))


def _panel(outcome: Outcome, n: str) -> Panel:
    lines: list[Curve] = []
    for method, color in _COLORS.items():
        runs = outcome.tuned[method].runs
        at = runs[0].evaluations.astype(np.float64)
        values = np.array([run.values for run in runs])
        shown = np.where(np.isfinite(values), values, 1e300)
        lines += [Curve(at[::4], y[::4], color, faint=True) for y in shown]
        lines.append(Curve(at, np.median(shown, axis=0), color, method))
    phase = outcome.problem == "phase-retrieval"
    where = outcome.tuned[_IAN].where
    return Panel(
        name=f"fair-{outcome.problem}",
        title=f"{_TITLES[outcome.problem]}, tuned alike",
        x_label="gradient evaluations",
        y_label="f(z)" if phase else "Ψ(x)",
        curves=tuple(lines),
        caption=f"Instance {outcome.instance}. Faint: each of n = {n}; bold: their median. Lines "
        "that leave through the top are transients or divergence.",
        top=2 * where.diverged_above if phase else 15.0,
        bottom=6.0 if phase else 3.0,
        level=where.target,
    )
