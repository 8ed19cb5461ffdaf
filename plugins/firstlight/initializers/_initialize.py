"""initialize_: apply a plan to a module, and report target against measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from firstlight.initializers._feeds import feeds_by_order, feeds_by_trace
from firstlight.initializers._gain import gain
from firstlight.initializers._plan import InitPlan, InitRule, layer_kind


@dataclass(frozen=True)
class InitRow:
    """One layer of the report: standard deviation of its weight, asked for and found; a reason if it was left alone."""

    name: str
    layer: str
    feeds: str
    scheme: str
    target_std: float | None
    measured_std: float | None
    skipped: str | None = None


@dataclass(frozen=True)
class InitReport:
    """What :func:`initialize_` did, a row a layer; prints as a table."""

    rows: tuple[InitRow, ...]

    @property
    def initialized(self) -> tuple[InitRow, ...]:
        """The rows of layers that were filled."""
        return tuple(row for row in self.rows if row.skipped is None)

    @property
    def skipped(self) -> tuple[InitRow, ...]:
        """The rows of layers that were left alone, each with its reason."""
        return tuple(row for row in self.rows if row.skipped is not None)

    def __str__(self) -> str:
        """Draw the rows as a table."""
        head = ("layer", "type", "feeds", "initializer", "target std", "measured", "note")
        body = [
            (r.name, r.layer, r.feeds, r.scheme, _number(r.target_std), _number(r.measured_std), r.skipped or "")
            for r in self.rows
        ]
        widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in [head, *body]
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def initialize_(
    module: nn.Module,
    plan: InitPlan | None = None,
    *,
    example_input: Any = None,
    generator: torch.Generator | None = None,
) -> InitReport:
    """Fill the parameters of ``module`` in place after ``plan`` (default: :meth:`InitPlan.recommended`).

    What a layer feeds is read from the order of registration, or followed through one forward pass on
    ``example_input`` (a tensor, a tuple of arguments or a dict of keywords), which also sees activations that are
    functions. Tied tensors are filled once, by the first layer that owns them. Frozen, parametrized, quantized and
    not yet materialized tensors are left alone, and the report says so.

    Law: the variance of each weight is the plan's; the same generator state gives the same weights.
    Source: see :meth:`InitPlan.recommended`.

    >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> [(row.name, row.scheme, round(row.target_std, 4)) for row in initialize_(net).rows]
    [('0', 'he', 0.5), ('2', 'lecun', 0.125)]
    """
    plan = plan or InitPlan.recommended()
    feeds = feeds_by_order(module) if example_input is None else feeds_by_trace(module, example_input)
    seen: set[int] = set()
    rows = []
    for name, layer in module.named_modules():
        kind = layer_kind(layer)
        if kind is None:
            continue
        fed = feeds.get(name, "") if kind in ("linear", "conv") else ""
        rule = plan.rule_for(name, kind, fed)
        rows.append(_fill_layer(name, layer, fed, rule, seen, generator))
    return InitReport(tuple(rows))


@torch.no_grad()
def _fill_layer(
    name: str,
    layer: nn.Module,
    feeds: str,
    rule: InitRule | None,
    seen: set[int],
    generator: torch.Generator | None,
) -> InitRow:
    weight = getattr(layer, "weight", None)
    skipped = _reason_to_skip(layer, weight, rule, seen)
    scheme = rule.scheme if rule is not None else "keep"
    if skipped is not None or rule is None or weight is None:
        return InitRow(name, type(layer).__name__, feeds, scheme, None, None, skipped)
    target = _target_std(layer, weight, feeds, rule)
    _fill(weight, target, rule, generator)
    padding = getattr(layer, "padding_idx", None)
    if padding is not None:
        weight[padding].zero_()
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor) and bias.requires_grad:
        bias.zero_()
    seen.update(id(tensor) for tensor in (weight, bias) if tensor is not None)
    measured = float(weight.float().std(correction=0)) if weight.numel() > 1 else 0.0
    return InitRow(name, type(layer).__name__, feeds, scheme, target, measured)


def _reason_to_skip(layer: nn.Module, weight: Any, rule: InitRule | None, seen: set[int]) -> str | None:
    if rule is None:
        return "no rule of the plan matches"
    if rule.scheme == "keep":
        return "the plan keeps it"
    if is_parametrized(layer):
        return "parametrized: an in-place fill would be overwritten by its parametrization"
    if any(not isinstance(hook, str) and hasattr(hook, "name") for hook in layer._forward_pre_hooks.values()):
        return "its weight is computed by a forward hook (old-style weight_norm or spectral_norm)"
    if weight is None:
        return "it has no weight (affine=False)"
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "lazy: run one forward pass first"
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        return "quantized or not a floating-point parameter"
    if weight.is_meta:
        return "on the meta device: materialize the module first"
    if id(weight) in seen:
        return "tied: filled with the layer that owns it first"
    if not weight.requires_grad:
        return "frozen"
    return None


def fans(layer: nn.Module, weight: Tensor) -> tuple[int, int]:
    """Return fan in and fan out of one output and one input unit: groups counted, transposed convolutions turned.

    >>> fans(nn.Conv2d(64, 64, 3, groups=64), torch.empty(64, 1, 3, 3))
    (9, 9)
    """
    if isinstance(layer, nn.Bilinear):
        return layer.in1_features * layer.in2_features, layer.out_features
    field = math.prod(weight.shape[2:])
    groups = int(getattr(layer, "groups", 1))
    if isinstance(layer, _ConvTransposeNd):  # weight [in, out / groups, *kernel]
        return weight.shape[0] // groups * field, weight.shape[1] * field
    return weight.shape[1] * field, weight.shape[0] // groups * field


def _target_std(layer: nn.Module, weight: Tensor, feeds: str, rule: InitRule) -> float:
    if rule.scheme in ("ones", "zeros"):
        return 0.0
    if rule.scheme == "normal":
        assert rule.std is not None
        return rule.std
    fan_in, fan_out = fans(layer, weight)
    if rule.scheme == "xavier":
        return gain(feeds or "linear") * math.sqrt(2.0 / max(1, fan_in + fan_out))
    scale = 1.0 if rule.scheme == "lecun" else gain(feeds or "relu")
    return scale / math.sqrt(max(1, fan_in if rule.fan == "fan_in" else fan_out))


def _fill(weight: Tensor, std: float, rule: InitRule, generator: torch.Generator | None) -> None:
    if rule.scheme in ("ones", "zeros"):
        weight.fill_(1.0 if rule.scheme == "ones" else 0.0)
    elif rule.distribution == "uniform":
        bound = math.sqrt(3.0) * std
        weight.uniform_(-bound, bound, generator=generator)
    else:
        weight.normal_(0.0, std, generator=generator)
