"""initialize_: apply a plan to a module, and report target against measured."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from firstlight._require import did_you_mean, require
from firstlight.initializers._draw import draw, draw_orthogonal, measured_std
from firstlight.initializers._fans import Slot, bias_names, slots
from firstlight.initializers._feeds import LINEAR, RECURRENT_LAYERS, Feed, feeds_by_order, warnings_by_order
from firstlight.initializers._gain import FAMILY
from firstlight.initializers._plan import InitPlan, InitRule, layer_kind
from firstlight.initializers._report import InitReport, InitRow
from firstlight.initializers._trace import feeds_by_trace
from firstlight.initializers._write import at_rest, key, originals, reason_to_leave, write


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
    functions, gates of gated units, and makes lazy layers. Tied tensors are filled once, as the embedding if one of
    their layers is one, else by the first. Parametrized tensors are assigned through their ``right_inverse``. What is
    frozen, quantized, sharded, lazy, on the meta device, or cannot take the values is left alone, and the report says
    so.

    Shapes: weights of any layer that a plan speaks about; a row of the report each.
    Unit: standard deviations of weights.
    Law: the variance of each weight is the plan's; the same generator state gives the same weights and leaves the
    global generators alone.
    Source: see :meth:`InitPlan.recommended`.

    Raises:
        TypeError: ``module`` is not a module, or ``plan`` not a plan.
        ValueError: a rule names a layer that the module does not have.

    >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> [(row.name, row.scheme, round(row.target_std, 4)) for row in initialize_(net).rows]
    [('0', 'he', 0.5), ('2', 'lecun', 0.125)]
    """
    require(isinstance(module, nn.Module), "module", type(module).__name__, "an nn.Module", error=TypeError)
    plan = plan if plan is not None else InitPlan.recommended()
    require(isinstance(plan, InitPlan), "plan", plan, "an InitPlan", error=TypeError)
    if example_input is None:
        feeds, warnings = feeds_by_order(module), warnings_by_order(module)
    else:
        traced, warnings = feeds_by_trace(module, example_input)
        feeds = feeds_by_order(module) | traced  # by order: layers that this input does not reach
    warnings += _check_names(module, plan)
    owners = _owners(module)
    rows: list[InitRow] = []
    for name, layer in module.named_modules():
        kind = layer_kind(layer)
        if kind is None:
            rows.extend(_unknown(name, layer))
            continue
        feed = feeds.get(name, LINEAR) if kind in ("linear", "conv") else Feed("", 1.0)
        rule = plan.rule_for(name, kind, feed.activation)
        with at_rest(layer):
            rows.extend(_fill_layer(name, layer, feed, rule, owners, generator))
    return InitReport(tuple(rows), tuple(warnings))


def _check_names(module: nn.Module, plan: InitPlan) -> list[str]:
    """Refuse a rule for a layer that is not there; warn of a pattern that matches none."""
    layers = [name for name, _ in module.named_modules()]
    warnings = []
    for pattern in (rule.names for rule in plan.rules if rule.names is not None):
        if any(fnmatchcase(name, pattern) for name in layers):
            continue
        literal = not set(pattern) & set("*?[")
        require(not literal, "names", pattern, f"the name of a layer of the module{did_you_mean(pattern, layers)}")
        warnings.append(f"no layer matches the names {pattern!r} of a rule")
    return warnings


def _owners(module: nn.Module) -> dict[tuple[Any, ...], str]:
    """Which layer fills each tensor: an embedding tied to a head keeps the head's logits small at the start."""
    owners: dict[tuple[Any, ...], str] = {}
    layers = [(name, layer) for name, layer in module.named_modules() if layer_kind(layer) is not None]
    for name, layer in sorted(layers, key=lambda item: layer_kind(item[1]) != "embedding"):  # stable
        for tensor in layer.parameters(recurse=False):
            owners.setdefault(key(tensor), name)
    return owners


def _unknown(name: str, layer: nn.Module) -> list[InitRow]:
    """Rows of layers that have weights and that no plan speaks about: they must not be missed in silence."""
    own = [f"{name}.{attribute}".lstrip(".") for attribute, _ in layer.named_parameters(recurse=False)]
    quantized = "quantized" in type(layer).__module__ and hasattr(layer, "weight")
    if "parametrizations" in name.split(".") or not (own or quantized):
        return []
    reason = "quantized" if quantized else f"no rule knows layers of this type; its own: {', '.join(own)}"
    return [InitRow(name, type(layer).__name__, "", "keep", None, None, reason)]


@torch.no_grad()
def _fill_layer(
    name: str,
    layer: nn.Module,
    feed: Feed,
    rule: InitRule | None,
    owners: dict[tuple[Any, ...], str],
    generator: torch.Generator | None,
) -> list[InitRow]:
    rows = []
    reason = _reason_of_plan(rule)
    several = isinstance(layer, (*RECURRENT_LAYERS, nn.MultiheadAttention))
    for slot in [Slot("weight", 1, 0, 0)] if reason is not None else slots(layer):
        named = f"{name}.{slot.attribute}".lstrip(".") if several and reason is None else name
        scheme = rule.scheme if rule is not None else "keep"
        skipped = reason or reason_to_leave(layer, slot.attribute) or _reason_tied(name, layer, slot, owners)
        target = measured = None
        if skipped is None and rule is not None:
            skipped, target, measured = _fill(layer, slot, feed, rule, generator)
        rows.append(InitRow(named, type(layer).__name__, feed.activation, scheme, target, measured, skipped))
    if rule is not None and any(row.skipped is None for row in rows):
        _fill_biases(layer, rule)
    return rows


def _reason_of_plan(rule: InitRule | None) -> str | None:
    if rule is None:
        return "no rule of the plan matches"
    if rule.scheme == "keep":
        return "the plan keeps it"
    return None


def _reason_tied(name: str, layer: nn.Module, slot: Slot, owners: dict[tuple[Any, ...], str]) -> str | None:
    for tensor in originals(layer, slot.attribute):
        owner = owners.get(key(tensor), name)
        if owner != name:
            return f"tied: filled with {owner!r}, the layer that owns it"
    return None


def _fill(
    layer: nn.Module, slot: Slot, feed: Feed, rule: InitRule, generator: torch.Generator | None
) -> tuple[str | None, float | None, float | None]:
    """Fill one weight; return the reason why not, or target and measured standard deviation."""
    weight: Tensor = getattr(layer, slot.attribute)
    scheme = ("orthogonal" if slot.hidden else "xavier") if rule.scheme == "gates" else rule.scheme
    if scheme in ("he", "xavier", "lecun", "orthogonal") and not slot.fan_in:
        return f"the scheme {scheme!r} needs fans, which a weight of shape {tuple(weight.shape)} lacks", None, None
    target = _target_std(weight, slot, feed, rule, scheme)
    if scheme in ("ones", "zeros"):
        values = torch.full_like(weight, 1.0 if scheme == "ones" else 0.0)
    elif scheme == "orthogonal":
        values = draw_orthogonal(weight, slot, rule.gain or 1.0, generator)
    else:
        values = draw(weight, target, rule.distribution, generator)
    padding = getattr(layer, "padding_idx", None)
    if padding is not None:
        values[padding] = 0.0
    failed = write(layer, slot.attribute, values)
    if failed is not None:
        return failed, None, None
    found = getattr(layer, slot.attribute).detach()
    if padding is not None:
        found = found[torch.arange(len(found)) != padding]
    return None, target, measured_std(found)


def _target_std(weight: Tensor, slot: Slot, feed: Feed, rule: InitRule, scheme: str) -> float:
    if scheme in ("ones", "zeros"):
        return 0.0
    if scheme == "normal":
        assert rule.std is not None
        return rule.std
    if scheme == "orthogonal":
        rows = weight.shape[0] // slot.blocks
        return (rule.gain or 1.0) / math.sqrt(max(rows, weight.numel() // weight.shape[0]))
    if scheme == "xavier":
        saturates = FAMILY.get(feed.activation, feed.activation) in ("tanh", "sigmoid")
        factor = rule.gain or (1.0 if saturates else feed.gain)
        return factor * math.sqrt(2.0 / (slot.fan_in + slot.fan_out))
    factor = rule.gain or (1.0 if scheme == "lecun" else feed.gain)
    return factor / math.sqrt(slot.fan_in if rule.fan == "fan_in" else slot.fan_out)


def _fill_biases(layer: nn.Module, rule: InitRule) -> None:
    for name in bias_names(layer):
        bias = getattr(layer, name, None)
        if not isinstance(bias, nn.Parameter) or reason_to_leave(layer, name) is not None:
            continue
        bias.zero_()
        # torch adds two biases, input and hidden: one of them carries the forget gate's, the second of four.
        if rule.scheme == "gates" and isinstance(layer, (nn.LSTM, nn.LSTMCell)) and "_ih" in name:
            bias.chunk(4)[1].fill_(rule.forget_bias)
