"""The initializers of the table: what each fills, and with which standard deviation it says it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.initializers import (
    InitPlan,
    InitReport,
    InitRow,
    InitRule,
    gain,
    initialize_,
    lsuv_,
    orthogonal_,
    orthogonal_gates_,
    prior_bias_,
    residual_scaled_,
)


@dataclass(frozen=True)
class Row:
    """One name: something that fills, or a record of plain values.

    ``make(dtype)`` returns a tensor or module, ``fill(target, generator)`` fills it. ``std`` holds the closed form of
    the standard deviation of each tensor (``""``: the tensor itself); of a value that is not random, too.
    """

    make: Callable[[torch.dtype], Any] | None = None
    fill: Callable[[Any, torch.Generator], Any] | None = None
    std: Mapping[str, float] = field(default_factory=dict)
    same_back: bool = True  # the object that was filled comes back, else a report
    record: object = None


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _net(dtype: torch.dtype) -> nn.Module:
    parts = nn.ModuleDict(
        {
            "conv": nn.Conv2d(16, 32, 3, groups=2),
            "relu": nn.ReLU(),
            "bilinear": nn.Bilinear(16, 16, 32),
            "tanh": nn.Tanh(),
            "lstm": nn.LSTM(48, 64),
            "attention": nn.MultiheadAttention(64, 4),
            "embedding": nn.Embedding(500, 16, padding_idx=0),
            "head": nn.Linear(64, 96),
        }
    )
    return parts.to(dtype)


_NET_STD = {
    "conv.weight": math.sqrt(2 / (16 * 9)),
    "bilinear.weight": math.sqrt(2 / (256 + 32 * 16)),
    "lstm.weight_hh_l0": math.sqrt(1 / 64),
    "lstm.weight_ih_l0": math.sqrt(2 / (48 + 64)),
    "attention.in_proj_weight": math.sqrt(2 / 128),
    "attention.out_proj.weight": math.sqrt(1 / 64),
    "embedding.weight": 0.02 * math.sqrt(499 / 500),
    "head.weight": math.sqrt(1 / 64),
}


def _plain(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).to(dtype)


def _lsuv(net: nn.Module, generator: torch.Generator) -> InitReport:
    weight = next(net.parameters())
    return lsuv_(net, torch.randn(512, 64, generator=seeded(1)).to(weight.dtype), generator=generator)


def _encoder(dtype: torch.dtype) -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(dtype)


_BRANCHES = {
    f"layers.{i}.{end}.weight": 0.02 / math.sqrt(4) for i in range(2) for end in ("self_attn.out_proj", "linear2")
}

ROWS: dict[str, Row] = {
    "InitPlan": Row(record=InitPlan([InitRule("zeros", names="head"), *InitPlan.recommended().rules])),
    "InitRule": Row(record=InitRule("he", kinds=["conv"], feeds=["relu"], fan="fan_out", distribution="uniform")),
    "InitRow": Row(record=InitRow("0", "Linear", "relu", "he", 0.5, 0.49)),
    "InitReport": Row(record=InitReport((), ("a warning",))),
    "gain": Row(record=gain("gelu")),
    "initialize_": Row(_net, lambda net, g: initialize_(net, generator=g), _NET_STD, same_back=False),
    # Orthonormal weights keep the variance of white inputs: the first layer stays, the second undoes the ReLU, whose
    # output has the variance (1 - 1 / pi) / 2 and the mean square 1 / 2.
    "lsuv_": Row(_plain, _lsuv, {"0.weight": 1 / 8, "2.weight": math.sqrt(2) / 8}, same_back=False),
    "orthogonal_": Row(lambda dtype: torch.zeros(96, 4, 8, dtype=dtype), lambda t, g: orthogonal_(t, generator=g)),
    "orthogonal_gates_": Row(
        lambda dtype: nn.LSTM(16, 64, num_layers=2, bidirectional=True).to(dtype),
        lambda lstm, g: orthogonal_gates_(lstm, generator=g),
        {f"weight_hh_l{k}{end}": 1 / 8 for k in range(2) for end in ("", "_reverse")},
    ),
    "prior_bias_": Row(
        lambda dtype: nn.Linear(4, 2).to(dtype),
        lambda layer, g: prior_bias_(layer, [9, 1]),
        {"bias": math.log(9) / 2},
    ),
    "residual_scaled_": Row(
        _encoder, lambda net, g: residual_scaled_(net, std=0.02, generator=g), _BRANCHES, same_back=False
    ),
}
ROWS["orthogonal_"].std[""] = 1 / math.sqrt(96)  # type: ignore[index]


def _head() -> nn.Linear:
    return nn.Linear(4, 3)


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: gain("rleu"), ValueError, "did you mean 'relu'"),
    (lambda: gain(lambda z: z.sum()), ValueError, "works element by element"),
    (lambda: gain("swiglu", backward=True), ValueError, "backward must be False for the gated unit 'swiglu'"),
    (lambda: InitRule("kaiming"), ValueError, "scheme must be one of he, xavier"),
    (lambda: InitRule("he", kinds=["lienar"]), ValueError, "did you mean 'linear'"),
    (lambda: InitRule("he", kinds="linear"), TypeError, r"kinds must be a list: \['linear'\]"),
    (lambda: InitRule("he", feeds=["rellu"]), ValueError, "feeds must be among .* did you mean 'relu'"),
    (lambda: InitRule("he", fan="in"), ValueError, "fan must be one of fan_in, fan_out"),
    (lambda: InitRule("normal", std=-0.1), ValueError, "std must be zero or more; got -0.1"),
    (lambda: InitRule("he", forget_bias=math.nan), ValueError, "forget_bias must be a number .*; got nan"),
    (lambda: InitRule("he", forget_bias=math.inf), ValueError, "forget_bias must be a number .*; got inf"),
    (lambda: InitRule("normal", std=1e300), ValueError, "std must be a number that float16 holds.*; got 1e\\+300"),
    (lambda: InitRule("he", gain=1e300), ValueError, "gain must be a number that float16 holds"),
    (lambda: InitRule("he", std=0.1), ValueError, "std must be given for the scheme 'normal' only"),
    (lambda: InitRule("gates"), ValueError, r"kinds must be \['recurrent'\] for the scheme 'gates'"),
    (lambda: InitPlan([{"scheme": "he", "kind": ["conv"]}]), ValueError, r"rules\[0\] key .* did you mean 'kinds'"),
    (lambda: InitPlan([{"kinds": ["conv"]}]), ValueError, r"rules\[0\] must be a rule with a scheme"),
    (lambda: InitPlan(InitRule("he")), TypeError, "rules must be a list of InitRule"),
    (
        lambda: initialize_(nn.ModuleDict({"head": _head()}), InitPlan([InitRule("he", names="haed")])),
        ValueError,
        "names must be the name of a layer of the module; did you mean 'head'",
    ),
    (lambda: initialize_(_head(), [InitRule("he")]), TypeError, "plan must be an InitPlan"),
    (lambda: initialize_(torch.ones(3)), TypeError, "module must be an nn.Module; got 'Tensor'"),
    (lambda: lsuv_(_head(), torch.randn(8, 4), tolerance=0.0), ValueError, "tolerance must be between 0 and 1"),
    (lambda: lsuv_(_head(), torch.randn(8, 4), max_attempts=0), ValueError, "max_attempts must be one or more"),
    (lambda: lsuv_(_head(), torch.ones(8, 4)), ValueError, "batch must be of samples that differ"),
    (lambda: lsuv_(_head(), torch.randn(1, 4).expand(8, 4)), ValueError, "batch must be of samples that differ"),
    (lambda: lsuv_(_head(), torch.full((8, 4), math.nan)), ValueError, "batch must be finite"),
    (lambda: lsuv_(nn.ReLU(), torch.randn(8, 4)), ValueError, "with linear or convolutional layers"),
    (lambda: orthogonal_(torch.zeros(3)), ValueError, r"of two dimensions or more; got \(3,\)"),
    (lambda: orthogonal_(torch.zeros(3, 3, dtype=torch.long)), ValueError, "floating-point with storage; got 'torch"),
    (lambda: orthogonal_gates_(torch.zeros(8, 4), num_gates=3), ValueError, "num_gates must be a divisor of 8 rows"),
    (lambda: orthogonal_gates_(torch.zeros(9, 4)), ValueError, "num_gates must be "),
    (lambda: orthogonal_gates_(_head()), TypeError, "a recurrent layer; got 'Linear'"),
    (
        lambda: orthogonal_gates_(nn.GRU(2, 2).requires_grad_(False)),
        ValueError,
        "weight_hh_l0 must be a weight that can be filled; got 'frozen'",
    ),
    (lambda: prior_bias_(_head(), [1, 2]), ValueError, "class_counts must be 3, one for each output"),
    (lambda: prior_bias_(_head(), [1, 0, 2]), ValueError, "add one to each count"),
    (lambda: prior_bias_(nn.Linear(4, 3, bias=False), [1, 1, 2]), ValueError, "build it with bias=True"),
    (lambda: prior_bias_(_head(), 3.0, output="sigmoid"), ValueError, "below total=1.0"),
    (lambda: prior_bias_(_head(), [1, 1, 1], output="tanh"), ValueError, "'softmax' or 'sigmoid'"),
    (lambda: residual_scaled_(nn.Sequential(_head())), ValueError, "patterns that match a layer .* among 0"),
    (lambda: residual_scaled_(_head(), names="*"), TypeError, r"names must be a list: \['\*'\]"),
    (lambda: residual_scaled_(_head(), names=["*"], std=0.0), ValueError, "std must be above zero"),
    (lambda: residual_scaled_(_head(), names=["*"], num_branches=0), ValueError, "num_branches must be one or more"),
]


def tensors_of(target: Any) -> dict[str, Tensor]:
    if isinstance(target, Tensor):
        return {"": target}
    return dict(target.named_parameters())
