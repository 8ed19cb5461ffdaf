"""Every loss of ours and of torch's: its floor is where a search ends and nothing gets below it, or it has none.

The floor is the one that OverfitOneBatch judges by, seen by its own recorder; the search is torch's L-BFGS, then Adam,
in float64, over predictions that the loss may be given (logarithms of probabilities, distances of zero or more).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight import losses
from firstlight.callbacks._overfit_trial import LossRecorder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def free(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def starts(case: Case) -> list[Tensor]:
    return [free(*shape, seed=number) for number, shape in enumerate(case.shapes)]


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=seeded(2), dtype=torch.float64)


CLASSES = torch.tensor([0, 2, 1, 2, 3, 0])
IGNORED = torch.tensor([0, 2, -100, 2, 3, 0])
SOFT = free(6, 4).softmax(1)
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
ONE_HOT = F.one_hot(CLASSES, 4).double()
SEVERAL = torch.tensor([[0, 2, -1, 1], [3, -1, -1, -1], [1, 2, 3, -1], [-1, 0, 1, 2], [0, 1, 2, 3], [2, -1, 0, 0]])
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
NUMBERS = free(6, 4)
COUNTS = torch.poisson(3 * uniform(6, 4), generator=seeded())
WORDS = torch.tensor([[1, 2, 2], [3, 1, 0], [2, 2, 2]])  # the last has no alignment with four frames
FRAMES, LENGTHS = torch.tensor([6, 5, 4]), torch.tensor([3, 2, 3])
REDUCTIONS = [{"reduction": "mean"}, {"reduction": "sum"}]


@dataclass(frozen=True)
class Case:
    """A loss on a target that stands, as a function of free numbers of the given shapes."""

    loss: Any
    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...] = ((6, 4),)
    tolerance: float = 1e-3


def on(target: Tensor, form: Callable[[Tensor], Tensor] = lambda x: x, shape: tuple[int, ...] = (6, 4)) -> Any:
    """A call ``loss(prediction, target)`` whose prediction has some form."""
    return lambda loss, x: loss(form(x), target), (shape,)


def cases(make: Callable[..., Any], target: Any, options: Any = ({},), **kwargs: Any) -> list[Case]:
    call, shapes = target
    found = [Case(make(**option), call, shapes, **kwargs) for option in options]
    for case in found:
        if isinstance(case.loss, nn.Module):
            case.loss.double()
    return found


def log_softmax(x: Tensor) -> Tensor:
    return x.log_softmax(1)


def ctc(loss: Any, x: Tensor) -> Tensor:
    return loss(x.log_softmax(-1), WORDS, FRAMES, LENGTHS)


def ctc_feasible(loss: Any, x: Tensor) -> Tensor:
    return loss(x.log_softmax(-1), WORDS[:2], FRAMES[:2], LENGTHS[:2])


def gaussian(loss: Any, x: Tensor) -> Tensor:
    return loss(x, NUMBERS, uniform(6, 4) + 0.1)


TRIPLE = ((5, 3), (5, 3), (5, 3))
SMOOTH = [{}, {"label_smoothing": 0.1}, {"weight": WEIGHT.tolist(), "label_smoothing": 0.1}, {"reduction": "sum"}]
SMOOTH_TORCH = [{}, {"label_smoothing": 0.1}, {"weight": WEIGHT, "label_smoothing": 0.1}, {"reduction": "sum"}]
HALF_BINARY = 0.2 + 0.6 * uniform(6, 4)

# Of each name the ways in which it is tried; torch's losses come first, then ours.
FLOORS: dict[str, list[Case]] = {
    "torch.CrossEntropyLoss": [
        *cases(nn.CrossEntropyLoss, on(CLASSES), SMOOTH_TORCH),
        *cases(nn.CrossEntropyLoss, on(IGNORED), SMOOTH_TORCH),
        *cases(nn.CrossEntropyLoss, on(SOFT), SMOOTH_TORCH),
        *cases(nn.CrossEntropyLoss, on(CLASSES.reshape(2, 3), shape=(2, 4, 3)), SMOOTH_TORCH),
    ],
    "torch.NLLLoss": cases(nn.NLLLoss, on(IGNORED, log_softmax), [{}, {"weight": WEIGHT}, {"reduction": "sum"}]),
    "torch.BCELoss": cases(nn.BCELoss, on(HALF_BINARY, torch.sigmoid), [*REDUCTIONS, {"weight": WEIGHT}]),
    "torch.BCEWithLogitsLoss": [
        *cases(nn.BCEWithLogitsLoss, on(HALF_BINARY), [*REDUCTIONS, {"pos_weight": WEIGHT}]),
        *cases(nn.BCEWithLogitsLoss, on(ONE_HOT), [*REDUCTIONS, {"pos_weight": WEIGHT, "weight": WEIGHT}]),
    ],
    "torch.MSELoss": cases(nn.MSELoss, on(NUMBERS), REDUCTIONS),
    "torch.L1Loss": cases(nn.L1Loss, on(NUMBERS), REDUCTIONS, tolerance=1e-2),
    "torch.SmoothL1Loss": cases(nn.SmoothL1Loss, on(NUMBERS), [*REDUCTIONS, {"beta": 0.1}]),
    "torch.HuberLoss": cases(nn.HuberLoss, on(NUMBERS), [*REDUCTIONS, {"delta": 0.1}]),
    "torch.KLDivLoss": [
        *cases(nn.KLDivLoss, on(SOFT, log_softmax), [{"reduction": "batchmean"}, {"reduction": "sum"}]),
        *cases(nn.KLDivLoss, on(SOFT.log(), log_softmax), [{"reduction": "batchmean", "log_target": True}]),
        *cases(nn.KLDivLoss, on(ONE_HOT, log_softmax), [{"reduction": "batchmean"}]),
    ],
    "torch.PoissonNLLLoss": [
        *cases(nn.PoissonNLLLoss, on(COUNTS), [*REDUCTIONS, {"full": True}]),
        *cases(nn.PoissonNLLLoss, on(COUNTS, F.softplus), [{"log_input": False}]),
    ],
    "torch.GaussianNLLLoss": cases(nn.GaussianNLLLoss, (gaussian, ((6, 4),)), [*REDUCTIONS, {"full": True}]),
    "torch.SoftMarginLoss": cases(nn.SoftMarginLoss, on(SIGNS[:, None].expand(6, 4)), REDUCTIONS),
    "torch.MultiLabelSoftMarginLoss": [
        *cases(nn.MultiLabelSoftMarginLoss, on(HALF_BINARY), [*REDUCTIONS, {"weight": WEIGHT}]),
        *cases(nn.MultiLabelSoftMarginLoss, on(ONE_HOT), REDUCTIONS),
    ],
    "torch.MultiMarginLoss": cases(nn.MultiMarginLoss, on(CLASSES), [*REDUCTIONS, {"p": 2, "weight": WEIGHT}]),
    "torch.MultiLabelMarginLoss": cases(nn.MultiLabelMarginLoss, on(SEVERAL), REDUCTIONS),
    "torch.HingeEmbeddingLoss": cases(
        nn.HingeEmbeddingLoss, on(SIGNS, torch.abs, (6,)), [*REDUCTIONS, {"margin": 0.3}], tolerance=1e-2
    ),
    "torch.CosineEmbeddingLoss": cases(
        nn.CosineEmbeddingLoss, (lambda loss, a, b: loss(a, b, SIGNS), ((6, 3), (6, 3))), [*REDUCTIONS, {"margin": 0.3}]
    ),
    "torch.MarginRankingLoss": cases(
        nn.MarginRankingLoss, (lambda loss, a, b: loss(a, b, SIGNS), ((6,), (6,))), [*REDUCTIONS, {"margin": 0.3}]
    ),
    "torch.TripletMarginLoss": cases(
        nn.TripletMarginLoss, (lambda loss, *x: loss(*x), TRIPLE), [*REDUCTIONS, {"swap": True, "p": 1}]
    ),
    "torch.CTCLoss": [
        *cases(nn.CTCLoss, (ctc_feasible, ((6, 2, 4),)), REDUCTIONS),
        *cases(nn.CTCLoss, (ctc, ((6, 3, 4),)), [{"zero_infinity": True}, {"zero_infinity": True, "reduction": "sum"}]),
    ],
    "CrossEntropyLoss": [
        *cases(losses.CrossEntropyLoss, on(CLASSES), SMOOTH),
        *cases(losses.CrossEntropyLoss, on(IGNORED), SMOOTH),
        *cases(losses.CrossEntropyLoss, on(SOFT), SMOOTH),
    ],
    "BinaryCrossEntropyLoss": cases(
        losses.BinaryCrossEntropyLoss, on(ONE_HOT), [{}, {"label_smoothing": 0.2}, {"pos_weight": WEIGHT.tolist()}]
    ),
    "FocalLoss": [
        *cases(losses.FocalLoss, on(IGNORED), [{}, {"label_smoothing": 0.2}, {"alpha": WEIGHT.tolist(), "gamma": 0.5}]),
        *cases(losses.FocalLoss, on(SOFT), [{}, {"gamma": 0.0}]),
    ],
    "BinaryFocalLoss": [
        *cases(losses.BinaryFocalLoss, on(ONE_HOT), [{}, {"alpha": 0.25, "normalizer": "positives"}]),
        *cases(losses.BinaryFocalLoss, on(HALF_BINARY), [{}, {"gamma": 0.5}]),
    ],
    "MSELoss": cases(losses.MSELoss, on(NUMBERS), REDUCTIONS),
    "L1Loss": cases(losses.L1Loss, on(NUMBERS), REDUCTIONS, tolerance=1e-2),
    "HuberLoss": cases(losses.HuberLoss, on(NUMBERS), REDUCTIONS),
    "LogCoshLoss": cases(losses.LogCoshLoss, on(NUMBERS), REDUCTIONS),
    "ReconstructionLoss": [
        *cases(losses.ReconstructionLoss, on(HALF_BINARY), REDUCTIONS),
        *cases(losses.ReconstructionLoss, on(NUMBERS), [{"likelihood": "gaussian"}]),
        *cases(losses.ReconstructionLoss, on(NUMBERS), [{"likelihood": "laplace"}], tolerance=1e-1),
    ],
    "GaussianKLLoss": cases(
        losses.GaussianKLLoss,
        (lambda loss, mean, log_variance: loss(mean, log_variance), ((6, 4), (6, 4))),
        [{}, {"free_bits": 0.25}, {"free_bits": 0.5, "free_bits_per": "sample"}],
    ),
    "SequenceCrossEntropyLoss": cases(
        losses.SequenceCrossEntropyLoss,
        on(IGNORED.reshape(2, 3), shape=(2, 3, 4)),
        [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}],
    ),
    "LinearCrossEntropyLoss": cases(
        losses.LinearCrossEntropyLoss,
        (lambda loss, hidden: loss(hidden, torch.eye(4, dtype=torch.float64), IGNORED), ((6, 4),)),
        [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}],
    ),
    "NTXentLoss": cases(
        losses.NTXentLoss, (lambda loss, a, b: loss(a, b), ((4, 8), (4, 8))), [{}, {"temperature": 0.1}]
    ),
    "InfoNCELoss": cases(
        losses.InfoNCELoss,
        (lambda loss, a, b: loss(a, b), ((4, 8), (4, 8))),
        [{"temperature": 0.5}, {"temperature": 0.2, "symmetric": True}],
    ),
    "TripletLoss": [
        *cases(losses.TripletLoss, (lambda loss, *x: loss(*x), TRIPLE), REDUCTIONS),
        *cases(losses.TripletLoss, on(CLASSES), [{"mining": "batch_hard"}, {"mining": "semi_hard"}]),
    ],
    "CTCLoss": [
        *cases(losses.CTCLoss, (ctc, ((6, 3, 4),)), REDUCTIONS),
        *cases(losses.CTCLoss, (ctc_feasible, ((6, 2, 4),)), [{"drop_infeasible": False}]),
    ],
}
# Judged by how far they fall.
RELATIVE = {
    "torch.TripletMarginWithDistanceLoss": "what the distance of the user's can be is not known",
    "torch.LinearCrossEntropyLoss": "takes the weights of a layer along, in a kernel of its own (since torch 2.13)",
    "AdversarialLoss": "a game: what one side gains the other loses, and under manual optimization the probe skips it",
    "gradient_penalty": "a part of that game",
    "r1_penalty": "a part of that game",
}
# The same loss under another name.
ALIASES = {"torch.NLLLoss2d", "KLDivLoss", "NLLLoss", "SmoothL1Loss", "GaussianNLLLoss"}


def functions() -> set[str]:
    """Names in lower case: the Modules call them, so their floors are the Modules'."""
    return {name for name in losses.__all__ if name[0].islower() and name not in RELATIVE}


def test_nobody_is_left_out():
    theirs = {f"torch.{name}" for name in torch.nn.modules.loss.__all__} | {"torch.LinearCrossEntropyLoss"}
    assert theirs | set(losses.__all__) == {*FLOORS, *RELATIVE, *ALIASES, *functions()}
    for name in ALIASES - {"torch.NLLLoss2d"}:
        assert getattr(losses, name) is getattr(nn, name)


def recorded(case: Case, values: list[Tensor]) -> tuple[Tensor, float | None]:
    recorder = LossRecorder()
    with recorder.watch(nn.ModuleList([case.loss])), recorder:
        loss = case.call(case.loss, *values)
    assert len(recorder.values) == 1, "one call of one loss"
    return loss, recorder.floor


def search(case: Case) -> tuple[float, float]:
    """Return the lowest value found from where the search begins, and from near there to far away the lowest met."""
    values = [value.requires_grad_() for value in starts(case)]
    lowest = math.inf

    def evaluate() -> Tensor:
        nonlocal lowest
        optimizer.zero_grad()
        loss = case.call(case.loss, *values)
        loss.backward()
        lowest = min(lowest, float(loss.detach()))
        return loss

    optimizer: Any = torch.optim.LBFGS(values, max_iter=100, line_search_fn="strong_wolfe")
    optimizer.step(evaluate)
    for value in values:
        value.data.nan_to_num_()
    for rate in (0.3, 0.03, 0.003):
        optimizer = torch.optim.Adam(values, lr=rate)
        for _ in range(100):
            evaluate()
            optimizer.step()
    met = lowest
    with torch.no_grad():
        for scale in (0.1, 1.0, 10.0, 100.0):
            for seed in range(20):
                some = [
                    scale * torch.randn(shape, generator=seeded(seed + 7), dtype=torch.float64) for shape in case.shapes
                ]
                met = min(met, float(case.call(case.loss, *some)))
    return lowest, met


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{name}-{number}") for name, found in FLOORS.items() for number, case in enumerate(found)],
)
def test_the_floor_is_where_a_search_ends_and_nothing_gets_below(case):
    _, floor = recorded(case, starts(case))
    assert floor is not None
    lowest, met = search(case)
    slack = 1e-6 * (1 + abs(floor))
    assert met >= floor - slack
    assert lowest <= floor + case.tolerance * (1 + abs(floor))


@pytest.mark.parametrize(
    ("loss", "call"),
    [
        (nn.GaussianNLLLoss(), lambda loss, x: loss(x, NUMBERS, F.softplus(x.requires_grad_()))),
        (nn.PoissonNLLLoss(), lambda loss, x: loss(x, -COUNTS - 1)),
        (nn.HingeEmbeddingLoss(), lambda loss, x: loss(x[:, 0], SIGNS)),
        (nn.KLDivLoss(reduction="sum"), lambda loss, x: loss(x.log_softmax(1), 0.2 * SOFT)),
        (losses.NTXentLoss(), lambda loss, x: loss(x[:, :2], x[:, 2:])),
        (losses.InfoNCELoss(), lambda loss, x: loss(query=x[:, :2], key=x[:, 2:])),
    ],
    ids=["a learned variance", "no counts", "no distance", "no probabilities", "two dimensions", "by name"],
)
def test_what_has_no_floor_that_can_be_reached_is_said_to_have_none(loss, call):
    assert recorded(Case(loss, call), [free(6, 4)])[1] is None


def test_arguments_by_name_count():
    loss = losses.MSELoss()
    mask = torch.zeros(6, 4, dtype=torch.bool)
    assert recorded(Case(loss, lambda loss, x: loss(x, NUMBERS, mask=mask)), [free(6, 4)])[1] == 0.0
    smooth = losses.CrossEntropyLoss(label_smoothing=0.1)
    _, floor = recorded(Case(smooth, lambda loss, x: loss(logits=x, target=CLASSES)), [free(6, 4)])
    assert floor == pytest.approx(-(0.925 * math.log(0.925) + 3 * 0.025 * math.log(0.025)), rel=1e-5)


def test_parts_that_trade_off_have_no_floor_together():
    """A latent that says nothing costs no divergence, and then the reconstruction costs all it can."""
    reconstruction, divergence = losses.ReconstructionLoss(likelihood="gaussian"), losses.GaussianKLLoss()
    recorder = LossRecorder()
    with recorder.watch(nn.ModuleList([reconstruction, divergence])), recorder:
        reconstruction(free(6, 4), NUMBERS) + divergence(free(6, 4), free(6, 4))
    assert recorder.floors == [0.0, 0.0]
    assert recorder.floor is None
