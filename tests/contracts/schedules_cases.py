"""Rows of the table of cases: schedules, and what shows or adapts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from firstlight.schedules import (
    Constant,
    CosineAnnealing,
    Joined,
    OneCycle,
    Schedule,
    StepDecay,
    WarmupCosine,
    WarmupInverseSqrt,
    WarmupLinear,
    WarmupStableDecay,
    lr_lambda,
    preview,
)


@dataclass(frozen=True)
class Row:
    """Schedules of one kind, or a name (``None`` of them) that is not a schedule."""

    variants: tuple[Schedule, ...] = ()
    jumps: bool = False  # by its nature


ROWS: dict[str, Row] = {
    "Constant": Row((Constant(), Constant(warmup=7), Constant(warmup=0.2), Constant(warmup=500))),
    "StepDecay": Row((StepDecay(every=10), StepDecay(every=0.25, gamma=0.5, warmup=3)), jumps=True),
    "CosineAnnealing": Row((CosineAnnealing(), CosineAnnealing(floor=0.1), CosineAnnealing(floor=1.0))),
    "WarmupCosine": Row(
        (WarmupCosine(), WarmupCosine(warmup=10, floor=0.05), WarmupCosine(warmup=1.0), WarmupCosine(warmup=500))
    ),
    "WarmupLinear": Row(
        (WarmupLinear(), WarmupLinear(warmup=10, floor=0.2), WarmupLinear(warmup=0), WarmupLinear(warmup=500))
    ),
    "WarmupInverseSqrt": Row((WarmupInverseSqrt(warmup=10), WarmupInverseSqrt(0.1), WarmupInverseSqrt(warmup=500))),
    "WarmupStableDecay": Row(
        (
            WarmupStableDecay(warmup=10, decay=0.2),
            WarmupStableDecay(warmup=0, decay=0, floor=0.5),
            WarmupStableDecay(warmup=0.5, decay=0.5, floor=0.1),
            WarmupStableDecay(warmup=500, decay=500),
        )
    ),
    "OneCycle": Row(
        (
            OneCycle(),
            OneCycle(shape="linear", three_phase=True),
            OneCycle(warmup=10, start=1.0, floor=0.0),
            OneCycle(warmup=500, three_phase=True),
        )
    ),
    "Joined": Row(
        (
            Joined([Constant(warmup=5), CosineAnnealing()], boundaries=[10]),
            Joined([WarmupLinear(warmup=0.1, floor=0.5), Constant()], boundaries=[0.5]),
            Joined([Joined([Constant(), CosineAnnealing(0.2)], [5]), CosineAnnealing(), Constant()], [0.3, 0.9]),
            Joined([Constant(), WarmupInverseSqrt(3)], boundaries=[500]),
            Joined([Constant(), CosineAnnealing()], boundaries=[40]),
        ),
        jumps=True,
    ),
    "Schedule": Row(),
    "Preview": Row(),
    "lr_lambda": Row(),
    "preview": Row(),
}

# What is wrong, and what the error says of value, expectation and fix.
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: lr_lambda(WarmupCosine(warmup=500), 100), ValueError, r"warmup must be at most the 100 .* shorter.* 500"),
    (lambda: preview(WarmupLinear(warmup=500), 100), ValueError, r"warmup must be at most the 100 .* shorter.* 500"),
    (
        lambda: lr_lambda(WarmupStableDecay(warmup=60, decay=0.5), 100),
        ValueError,
        r"warmup \+ decay must be at most the 100 optimizer steps of the run; .* got 110",
    ),
    (lambda: WarmupCosine(warmup=-1), ValueError, r"warmup must be an int of optimizer steps, a float .*; got -1"),
    (lambda: WarmupLinear(warmup=1.5), ValueError, r"warmup must be an int .* in \[0, 1\], or .* got 1\.5"),
    (lambda: WarmupStableDecay(warmup=1, decay="3 epochs"), ValueError, r"decay must be .* '3ep' .* got '3 epochs'"),
    (lambda: Constant(warmup=10**400), ValueError, "warmup must be an int of optimizer steps, a float .*; got 1000"),
    (lambda: Constant(warmup="9" * 400 + "ep"), ValueError, "warmup must be .* such as '3ep' .*; got '999"),
    (lambda: WarmupInverseSqrt(warmup=0), ValueError, "warmup must be above zero, such as 1000 or 0.05; got 0"),
    (lambda: WarmupLinear(floor=2.0), ValueError, r"floor must be a fraction of the base rate in \[0, 1\]; got 2\.0"),
    (lambda: StepDecay(every=0), ValueError, "every must be above zero; got 0"),
    (lambda: OneCycle(start=0.0), ValueError, r"start must be a fraction of the base rate in \(0, 1\]; got 0\.0"),
    (lambda: OneCycle(shape="cos"), ValueError, "shape must be 'cosine' or 'linear'; got 'cos'"),
    (lambda: CosineAnnealing().factor(3), ValueError, "total_steps must be one or more optimizer steps; got None"),
    (lambda: WarmupLinear(warmup="2ep").factor(0, 9), ValueError, r"only the trainer knows .* call schedule\.resolve"),
    (lambda: Joined([Constant()], []), ValueError, "schedules must be two or more"),
    (lambda: Joined([Constant(), Constant()], [1, 2]), ValueError, "boundaries must be 1, one less than the schedules"),
    (lambda: Joined([Constant()] * 3, [5, 5]), ValueError, r"boundaries must be rising.*; got \[5, 5\]"),
    (lambda: Joined([Constant(), 0.5], [5]), TypeError, "schedules must be of firstlight Schedules; got 0.5"),
    (lambda: lr_lambda(Joined([Constant()] * 2, [50]), 40), ValueError, "boundaries must be inside the run of 40"),
    (lambda: preview(Constant(), 0), ValueError, "total_steps must be one or more optimizer steps; got 0"),
    (lambda: preview(0.1, 10), TypeError, "schedule must be a firstlight Schedule; got 0.1"),
]
