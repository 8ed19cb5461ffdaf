"""The losses of the table: with which arguments each is built, what it is fed, and which laws it is excused from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from firstlight import losses

Inputs = tuple[Tensor, ...]


def plain_call(loss: nn.Module, *inputs: Tensor) -> Tensor:
    return loss(*inputs)


@dataclass(frozen=True)
class Row:
    """One loss: a Module, a function, or both (``function`` then must equal ``cls``).

    ``inputs()`` returns float64 tensors, the same at every call, with gradients asked for nowhere; ``variants`` are
    keyword arguments that ``cls`` and ``function`` both take (lists are given to the function as float64 tensors).
    """

    inputs: Callable[[], Inputs]
    cls: type[nn.Module] | None = None
    function: Callable[..., Tensor] | None = None
    variants: tuple[dict[str, Any], ...] = ({},)
    call: Callable[..., Tensor] = plain_call  # how the Module is called on the inputs
    differentiable: tuple[int, ...] = (0,)  # positions in inputs
    batch_dims: tuple[int | None, ...] | None = None  # where each input keeps the batch; default: dim 0 of all
    best: Callable[[Inputs], Inputs] | None = None  # the inputs with a perfect prediction in place of the given one
    extreme: Callable[[Inputs], Inputs] | None = None  # default: differentiable inputs become +-1e4
    reductions: tuple[str, ...] = ("mean", "sum", "none")  # () when there is no such argument
    exempt: Mapping[str, str] = field(default_factory=dict)  # name of a law (its test) -> why it does not hold here
    also: tuple[Row, ...] = ()  # the same loss on inputs of another kind


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def labels(*shape: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=seeded(seed))


def sure_of(target: Tensor, classes: int) -> Tensor:
    """Return logits [N, C, *] that give each label all the probability there is."""
    return 60.0 * nn.functional.one_hot(target, classes).movedim(-1, 1).double()


_CROSS_ENTROPY = Row(
    inputs=lambda: (normal(6, 4), labels(6, classes=4)),
    cls=losses.CrossEntropyLoss,
    function=losses.cross_entropy_loss,
    variants=({}, {"weight": [1.0, 2.0, 0.5, 3.0]}),
    best=lambda inputs: (sure_of(inputs[1], 4), inputs[1]),
    exempt={"none_is_consistent_with_mean:weight": "class weights: the mean divides by the sum of the weights"},
)

_BINARY = {
    "inputs": lambda: (2 * normal(6, 3), (uniform(6, 3, seed=1) > 0.5).double()),
    "best": lambda inputs: (60.0 * (2 * inputs[1] - 1), inputs[1]),
}
_SMOOTH_BINARY_CROSS_ENTROPY = Row(
    inputs=lambda: (2 * normal(6, 3), uniform(6, 3, seed=1)),
    cls=losses.BinaryCrossEntropyLoss,
    variants=({"label_smoothing": 0.25},),
    best=lambda inputs: (torch.logit(0.75 * inputs[1] + 0.125), inputs[1]),
)
_BINARY_CROSS_ENTROPY = Row(
    **_BINARY,
    cls=losses.BinaryCrossEntropyLoss,
    function=losses.binary_cross_entropy_loss,
    variants=({}, {"pos_weight": [1.0, 2.0, 0.5]}),
    also=(_SMOOTH_BINARY_CROSS_ENTROPY,),
)
_BINARY_FOCAL = Row(
    **_BINARY,
    cls=losses.BinaryFocalLoss,
    function=losses.binary_focal_loss,
    variants=(
        {},
        {"gamma": 0.5, "alpha": 0.25},
        {"gamma": 0.0},
        {"gamma": 1.0},
        {"gamma": 3.5, "normalizer": "positives"},
    ),
    exempt={"none_is_consistent_with_mean:normalizer": "the mean divides by the positives"},
)
_SMOOTH_FOCAL = Row(
    inputs=lambda: (2 * normal(6, 4, 2), labels(6, 2, classes=4)),
    cls=losses.FocalLoss,
    function=losses.focal_loss,
    variants=({"label_smoothing": 0.25}, {"label_smoothing": 0.25, "gamma": 0.5, "alpha": [1.0, 0.5, 2.0, 0.25]}),
)
_SOFT_FOCAL = Row(
    inputs=lambda: (2 * normal(6, 4), normal(6, 4, seed=1).softmax(1)),
    cls=losses.FocalLoss,
    function=losses.focal_loss,
    variants=({"gamma": 1.0}, {"gamma": 0.5}),
)
_FOCAL = Row(
    inputs=lambda: (2 * normal(6, 4), labels(6, classes=4)),
    cls=losses.FocalLoss,
    function=losses.focal_loss,
    variants=({}, {"gamma": 0.5, "alpha": [1.0, 0.5, 2.0, 0.25]}, {"gamma": 0.0}),
    best=lambda inputs: (sure_of(inputs[1], 4), inputs[1]),
    also=(
        _SMOOTH_FOCAL,
        _SOFT_FOCAL,
    ),
)
_REGRESSION = {
    "inputs": lambda: (normal(6, 3), normal(6, 3, seed=1)),
    "best": lambda inputs: (inputs[1], inputs[1]),
}
_LOG_COSH = Row(**_REGRESSION, cls=losses.LogCoshLoss, function=losses.log_cosh_loss)
_KL = Row(
    inputs=lambda: (normal(6, 3), normal(6, 3, seed=1)),
    cls=losses.GaussianKLLoss,
    function=losses.gaussian_kl_loss,
    variants=(
        {},
        {"free_bits": 0.25},
        {"free_bits": 0.25, "free_bits_per": "sample"},
    ),
    differentiable=(0, 1),
    best=lambda inputs: (torch.zeros_like(inputs[0]), torch.zeros_like(inputs[1])),
    exempt={
        "none_is_consistent_with_mean:free_bits": "free bits per dimension belong to the batch: no value per sample",
        "function_equals_class:free_bits": "as above: no reduction='none'",
    },
    also=(
        Row(
            inputs=lambda: (normal(6, 3), normal(6, 3, seed=1)),
            cls=losses.GaussianKLLoss,
            function=losses.gaussian_kl_loss,
            variants=({"free_bits": 0.5, "free_bits_per": "sample"},),
            differentiable=(0, 1),
            best=lambda inputs: (torch.zeros_like(inputs[0]), torch.zeros_like(inputs[1])),
        ),
    ),
)


def _adversarial(loss: Any, real: Tensor, fake: Tensor) -> Tensor:
    return loss.discriminator(real, fake) + 2 * loss.generator(fake)


def _curved(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a critic whose gradient depends on where it is taken, and on ``weight``, and is bounded."""
    return lambda x: nn.functional.softplus(x @ weight.to(x.dtype))


def _gradient_penalty(weight: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    return losses.gradient_penalty(_curved(weight), real, fake, generator=seeded())


def _r1_penalty(weight: Tensor, real: Tensor) -> Tensor:
    return losses.r1_penalty(_curved(weight), real)


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _large_head(inputs: Inputs) -> Inputs:
    """Logits of +-5e4, by factors that float16 holds."""
    hidden, weight, target, bias = inputs
    return 100 * hidden.sign(), 100 * weight.sign(), target, bias


_SEQUENCE = {"inputs": lambda: (normal(3, 4, 5), labels(3, 4, classes=5))}
_SEQUENCE_CROSS_ENTROPY = Row(
    **_SEQUENCE,
    cls=losses.SequenceCrossEntropyLoss,
    function=losses.sequence_cross_entropy_loss,
    variants=({}, {"z_loss": 1e-2}),
    best=lambda inputs: ((60.0 * nn.functional.one_hot(inputs[1], 5).double()).log_softmax(-1), inputs[1]),
    also=(
        Row(
            **_SEQUENCE,
            cls=losses.SequenceCrossEntropyLoss,
            function=losses.sequence_cross_entropy_loss,
            variants=({"label_smoothing": 0.1}, {"label_smoothing": 0.1, "z_loss": 1e-2}),
            best=lambda inputs: ((0.9 * nn.functional.one_hot(inputs[1], 5).double() + 0.02).log(), inputs[1]),
        ),
    ),
)
_LINEAR_CROSS_ENTROPY = Row(
    inputs=lambda: (normal(3, 4, 5), normal(7, 5, seed=1), labels(3, 4, classes=7), normal(7, seed=2)),
    cls=losses.LinearCrossEntropyLoss,
    function=losses.linear_cross_entropy_loss,
    variants=(
        {},
        {"label_smoothing": 0.1, "z_loss": 1e-2, "chunk_tokens": 5},
        {"class_weight": [1.0, 2.0, 0.5, 3.0, 0.0, 1.5, 0.25], "label_smoothing": 0.1, "chunk_tokens": 1},
    ),
    differentiable=(0, 1, 3),
    batch_dims=(0, None, 0, None),
    extreme=_large_head,
    exempt={"none_is_consistent_with_mean:class_weight": "class weights: the mean divides by the sum of the weights"},
)
_NT_XENT = Row(
    inputs=lambda: (normal(6, 4), normal(6, 4, seed=1)),
    cls=losses.NTXentLoss,
    function=losses.nt_xent_loss,
    variants=({}, {"temperature": 0.1, "chunk_size": 5}),
    differentiable=(0, 1),
    reductions=(),
)
_INFO_NCE = Row(
    inputs=lambda: (normal(6, 4), normal(6, 4, seed=1)),
    cls=losses.InfoNCELoss,
    function=losses.info_nce_loss,
    variants=({}, {"temperature": 0.5, "symmetric": True}),
    differentiable=(0, 1),
    reductions=(),
    also=(
        Row(
            inputs=lambda: (normal(6, 4), normal(6, 4, seed=1), normal(3, 4, seed=2)),
            cls=losses.InfoNCELoss,
            variants=({}, {"symmetric": True, "learnable_temperature": True}),
            differentiable=(0, 1, 2),
            batch_dims=(0, 0, None),
            reductions=(),
        ),
    ),
)
_TRIPLET = Row(
    inputs=lambda: (normal(6, 4), normal(6, 4, seed=1), normal(6, 4, seed=2)),
    cls=losses.TripletLoss,
    function=losses.triplet_loss,
    variants=({}, {"margin": 0.2}),
    differentiable=(0, 1, 2),
    best=lambda inputs: (inputs[0], inputs[0], inputs[0] + 1e3),
    also=(
        Row(
            inputs=lambda: (normal(8, 4), labels(8, classes=3)),
            cls=losses.TripletLoss,
            function=losses.triplet_loss,
            variants=({"mining": "batch_hard"}, {"mining": "semi_hard"}),
            best=lambda inputs: (1e3 * nn.functional.one_hot(inputs[1], 4).double(), inputs[1]),
            exempt={
                "gradgradcheck": "torch.cdist cannot be differentiated twice",
                "none_is_consistent_with_mean": "the mean is over the triplets that exist",
            },
        ),
    ),
)
_CTC = Row(
    inputs=lambda: (normal(6, 3, 4), labels(3, 3, classes=3) + 1, torch.tensor([6, 5, 6]), torch.tensor([3, 1, 2])),
    cls=losses.CTCLoss,
    call=lambda loss, logits, *rest: loss(_log_probabilities(logits), *rest),
    function=lambda logits, *rest, **options: losses.ctc_loss(_log_probabilities(logits), *rest, **options),
    variants=({}, {"drop_infeasible": False}),
    batch_dims=(1, 0, 0, 0),
    exempt={
        "gradgradcheck": "torch's ctc_loss cannot be differentiated twice",
        "none_is_consistent_with_mean": "the mean divides each loss by its number of labels, as torch's does",
    },
)

# Torch's own are held to the mathematics, not to our promises about 16-bit numbers.
_TORCH = {
    "finite_at_extremes": "torch's own: squares of 1e4 in float16",
    "half_precision_is_only_in_the_inputs": "torch's own: they answer in the dtype that they are asked in",
}

ROWS: dict[str, Row] = {
    "CrossEntropyLoss": _CROSS_ENTROPY,
    "cross_entropy_loss": _CROSS_ENTROPY,
    "BinaryCrossEntropyLoss": _BINARY_CROSS_ENTROPY,
    "binary_cross_entropy_loss": _BINARY_CROSS_ENTROPY,
    "BinaryFocalLoss": _BINARY_FOCAL,
    "binary_focal_loss": _BINARY_FOCAL,
    "FocalLoss": _FOCAL,
    "focal_loss": _FOCAL,
    "MSELoss": Row(**_REGRESSION, cls=losses.MSELoss),
    "L1Loss": Row(**_REGRESSION, cls=losses.L1Loss),
    "HuberLoss": Row(**_REGRESSION, cls=losses.HuberLoss, variants=({}, {"delta": 0.25})),
    "LogCoshLoss": _LOG_COSH,
    "log_cosh_loss": _LOG_COSH,
    "ReconstructionLoss": Row(
        inputs=lambda: (normal(6, 3, 2), uniform(6, 3, 2, seed=1)),
        cls=losses.ReconstructionLoss,
        variants=({},),
        best=lambda inputs: (torch.logit(inputs[1]), inputs[1]),
        also=(
            Row(
                inputs=lambda: (normal(6, 3, 2), normal(6, 3, 2, seed=1)),
                cls=losses.ReconstructionLoss,
                variants=({"likelihood": "gaussian"}, {"likelihood": "laplace"}),
                best=lambda inputs: (inputs[1], inputs[1]),
            ),
        ),
    ),
    "GaussianKLLoss": _KL,
    "gaussian_kl_loss": _KL,
    "SequenceCrossEntropyLoss": _SEQUENCE_CROSS_ENTROPY,
    "sequence_cross_entropy_loss": _SEQUENCE_CROSS_ENTROPY,
    "LinearCrossEntropyLoss": _LINEAR_CROSS_ENTROPY,
    "linear_cross_entropy_loss": _LINEAR_CROSS_ENTROPY,
    "NTXentLoss": _NT_XENT,
    "nt_xent_loss": _NT_XENT,
    "InfoNCELoss": _INFO_NCE,
    "info_nce_loss": _INFO_NCE,
    "TripletLoss": _TRIPLET,
    "triplet_loss": _TRIPLET,
    "CTCLoss": _CTC,
    "ctc_loss": _CTC,
    "AdversarialLoss": Row(
        inputs=lambda: (normal(6, 1), normal(6, 1, seed=1)),
        cls=losses.AdversarialLoss,
        variants=tuple({"kind": kind} for kind in ("non_saturating", "hinge", "least_squares", "wasserstein")),
        call=_adversarial,
        differentiable=(0, 1),
        reductions=(),
    ),
    "gradient_penalty": Row(
        inputs=lambda: (normal(3), normal(6, 3, seed=1), normal(6, 3, seed=2)),
        function=_gradient_penalty,
        batch_dims=(None, 0, 0),
        extreme=lambda inputs: (inputs[0], 1e4 * inputs[1].sign(), 1e4 * inputs[2].sign()),
        reductions=(),
        exempt={"batch_order_is_irrelevant": "each sample draws where between real and fake it is judged"},
    ),
    "r1_penalty": Row(
        inputs=lambda: (normal(3), normal(6, 3, seed=1)),
        function=_r1_penalty,
        batch_dims=(None, 0),
        extreme=lambda inputs: (inputs[0], 1e4 * inputs[1].sign()),
        reductions=(),
    ),
    "KLDivLoss": Row(
        inputs=lambda: (normal(6, 3).log_softmax(1), normal(6, 3, seed=1).softmax(1)),
        cls=losses.KLDivLoss,
        variants=({"reduction": "batchmean"},),
        reductions=(),
        exempt=_TORCH,
    ),
    "SmoothL1Loss": Row(**_REGRESSION, cls=losses.SmoothL1Loss, exempt=_TORCH),
    "GaussianNLLLoss": Row(
        inputs=lambda: (normal(6, 3), normal(6, 3, seed=1), uniform(6, 3, seed=2) + 0.5),
        cls=losses.GaussianNLLLoss,
        differentiable=(0, 2),
        exempt=_TORCH,
    ),
    "NLLLoss": Row(
        inputs=lambda: (normal(6, 4).log_softmax(1), labels(6, classes=4)),
        cls=losses.NLLLoss,
        exempt=_TORCH,
    ),
}

_Z = torch.zeros(4, 1)
_LABELS = torch.arange(4)
_FRAMES = torch.zeros(4, 1, 3).log_softmax(-1)
_BATCH_NORM = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))

# Calls that must fail, with the error and what its message must say.
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: losses.CrossEntropyLoss(label_smoothing=1.5), ValueError, r"label_smoothing must be between 0 and 1"),
    (lambda: losses.CrossEntropyLoss(reduction="average"), ValueError, r"reduction must be 'mean', 'sum' or 'none'"),
    (lambda: losses.BinaryCrossEntropyLoss(label_smoothing=-0.1), ValueError, r"between 0 and 1; got -0\.1"),
    (lambda: losses.BinaryCrossEntropyLoss(pos_weight=-1.0), ValueError, r"pos_weight must be a non-negative number"),
    (lambda: losses.BinaryCrossEntropyLoss()(_Z, _Z.long()), ValueError, r"got torch\.int64: use target\.float\(\)"),
    (lambda: losses.BinaryCrossEntropyLoss()(_Z, _Z - 1), ValueError, r"between 0 and 1; .*\(target \+ 1\) / 2"),
    (lambda: losses.BinaryCrossEntropyLoss()(_Z, _Z[:, 0]), ValueError, r"shape of logits, \(4, 1\); got \(4,\)"),
    (lambda: losses.BinaryFocalLoss(gamma=-1.0), ValueError, r"gamma must be zero or more, and finite; got -1"),
    (lambda: losses.BinaryFocalLoss(alpha=2.0), ValueError, r"alpha must be between 0 and 1, or None"),
    (lambda: losses.BinaryFocalLoss(normalizer="batch"), ValueError, r"'elements' or 'positives'; got 'batch'"),
    (lambda: losses.binary_focal_loss(_Z, _Z + 2), ValueError, r"target must be between 0 and 1; got values from 2"),
    (lambda: losses.FocalLoss(gamma=float("inf")), ValueError, r"gamma must be zero or more, and finite"),
    (lambda: losses.FocalLoss(alpha=[0.5, -1.0]), ValueError, r"alpha must be one non-negative number per class"),
    (lambda: losses.FocalLoss(alpha=[1.0])(_Z.expand(4, 3), _LABELS), ValueError, r"one number for each of the 3"),
    (lambda: losses.FocalLoss()(_Z, _LABELS), ValueError, r"two classes or more .*binary_focal_loss"),
    (lambda: losses.FocalLoss()(_Z.expand(4, 3), _LABELS), ValueError, r"from 0 to 2, or ignore_index; .*0 to 3"),
    (lambda: losses.FocalLoss()(_Z.expand(4, 3), _LABELS[:3]), ValueError, r"class indices of shape \(4,\)"),
    (lambda: losses.MSELoss()(_Z, _Z[:, 0]), ValueError, r"shape of prediction, \(4, 1\).*target\.reshape\(4, 1\)"),
    (lambda: losses.MSELoss()(_Z, _Z.long()), ValueError, r"target must be floating-point numbers; got torch\.int64"),
    (lambda: losses.L1Loss()(_Z, _Z, mask=_Z), ValueError, r"mask must be of dtype torch\.bool"),
    (
        lambda: losses.L1Loss()(_Z, _Z, mask=_Z[:3] > 0),
        ValueError,
        r"mask must be of shape \(4, 1\), or of its leading",
    ),
    (lambda: losses.HuberLoss(delta=0.0), ValueError, r"delta must be above zero, and finite; got 0\.0"),
    (lambda: losses.LogCoshLoss(reduction="max"), ValueError, r"reduction must be 'mean', 'sum' or 'none'; got 'max'"),
    (lambda: losses.LogCoshLoss()(_Z, _Z.int()), ValueError, r"target must be floating-point numbers"),
    (lambda: losses.ReconstructionLoss(likelihood="poisson"), ValueError, r"'bernoulli', 'gaussian' or 'laplace'"),
    (lambda: losses.ReconstructionLoss()(_Z, _Z + 255), ValueError, r"between 0 and 1; got values from 255 to 255"),
    (lambda: losses.GaussianKLLoss(free_bits=-1.0), ValueError, r"free_bits must be zero or more nats"),
    (lambda: losses.GaussianKLLoss(free_bits_per="batch"), ValueError, r"'dimension' or 'sample'; got 'batch'"),
    (lambda: losses.GaussianKLLoss(free_bits=1.0, reduction="none"), ValueError, r"use free_bits_per='sample'"),
    (lambda: losses.gaussian_kl_loss(_Z, _Z.T), ValueError, r"log_variance must have the shape of mean"),
    (lambda: losses.SequenceCrossEntropyLoss(label_smoothing=-0.1), ValueError, r"between 0 and 1; got -0\.1"),
    (lambda: losses.SequenceCrossEntropyLoss(z_loss=-1e-4), ValueError, r"z_loss must be zero or above"),
    (lambda: losses.SequenceCrossEntropyLoss()(_Z, _LABELS), ValueError, r"target must be between 0 and 0.*; got 3"),
    (
        lambda: losses.SequenceCrossEntropyLoss()(torch.zeros(2, 5, 3), torch.zeros(2, 3, dtype=torch.long)),
        ValueError,
        r"without their last dimension \(the vocabulary\), \(2, 5\); got \(2, 3\)",
    ),
    (lambda: losses.LinearCrossEntropyLoss(chunk_tokens=0), ValueError, r"chunk_tokens must be at least 1, or None"),
    (lambda: losses.LinearCrossEntropyLoss(class_weight=[1.0, -1.0]), ValueError, r"one non-negative number per class"),
    (
        lambda: losses.LinearCrossEntropyLoss()(_Z, torch.zeros(1, 3), _LABELS),
        ValueError,
        r"hidden and weight must be of shapes \[\.\.\., H\] and \[V, H\]",
    ),
    (
        lambda: losses.LinearCrossEntropyLoss()(_Z, _Z[:3], _LABELS),
        ValueError,
        r"target must be between 0 and 2.*got 3",
    ),
    (
        lambda: losses.LinearCrossEntropyLoss()(_Z, _Z, _Z[:, 0]),
        ValueError,
        r"class indices \(integers\); got torch\.f",
    ),
    (lambda: losses.LinearCrossEntropyLoss()(_Z, _Z, _LABELS, _Z), ValueError, r"bias must be of shape \[V\], \(4,\)"),
    (lambda: losses.NTXentLoss(temperature=0.0), ValueError, r"temperature must be above zero"),
    (lambda: losses.NTXentLoss(chunk_size=0), ValueError, r"chunk_size must be at least 1, or None; got 0"),
    (lambda: losses.NTXentLoss()(_Z, _Z[:3]), ValueError, r"z2 must be of the shape of z1"),
    (lambda: losses.InfoNCELoss(temperature=-0.07), ValueError, r"temperature must be above zero .*; got -0\.07"),
    (lambda: losses.InfoNCELoss(temperature=0.001, learnable_temperature=True), ValueError, r"at least 0\.01 to be"),
    (lambda: losses.InfoNCELoss()(_Z, _Z, _Z.T), ValueError, r"negatives must be of shape \[M, 1\]"),
    (lambda: losses.TripletLoss(mining="hardest"), ValueError, r"None, 'batch_hard' or 'semi_hard'; got 'hardest'"),
    (lambda: losses.TripletLoss(margin=-1.0), ValueError, r"margin must be zero or above"),
    (lambda: losses.TripletLoss()(_Z, _LABELS), TypeError, r"negative is missing: .* or set mining for labels"),
    (lambda: losses.TripletLoss(mining="batch_hard")(_Z, _Z[:, 0]), ValueError, r"labels must be one integer per"),
    (lambda: losses.CTCLoss(blank=-1), ValueError, r"blank must be a class; got -1"),
    (lambda: losses.CTCLoss()(_FRAMES + 1, _LABELS[None, 1:2], [4], [1]), ValueError, r"call \.log_softmax\(-1\)"),
    (lambda: losses.CTCLoss()(_FRAMES, _LABELS[None, 3:], [4], [1]), ValueError, r"other than blank=0; got \[3\]"),
    (lambda: losses.CTCLoss()(_FRAMES, _LABELS[None, :1], [4], [1]), ValueError, r"other than blank=0; got \[0\]"),
    (lambda: losses.CTCLoss()(_FRAMES, _LABELS[None, 1:2], [5], [1]), ValueError, r"input_lengths must be between 0 "),
    (lambda: losses.CTCLoss()(_FRAMES, _LABELS[None, 1:2], [4], [2]), ValueError, r"target_lengths must be between 0"),
    (lambda: losses.CTCLoss()(_FRAMES, _LABELS[None, 1:2], [4, 4], [1]), ValueError, r"one length per sample, 1; got"),
    (lambda: losses.AdversarialLoss(kind="wgan"), ValueError, r"kind must be 'non_saturating', .*; got 'wgan'"),
    (lambda: losses.gradient_penalty(_BATCH_NORM, _Z, _Z), ValueError, r"critic must be without batch norm.*got '1'"),
    (lambda: losses.gradient_penalty(nn.Identity(), _Z, _Z, weight=-1.0), ValueError, r"weight must be zero or more"),
    (lambda: losses.gradient_penalty(nn.Identity(), _Z, _Z[:3]), ValueError, r"fake must have the shape of real"),
    (lambda: losses.r1_penalty(nn.Identity(), _Z, gamma=-1.0), ValueError, r"gamma must be zero or more"),
]
