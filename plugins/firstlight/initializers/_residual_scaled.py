"""residual_scaled_: the layers that end residual branches, scaled down by the number of branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from firstlight._require import require
from firstlight.initializers._draw import draw, measured_std
from firstlight.initializers._report import InitReport, InitRow
from firstlight.initializers._write import at_rest, key, originals, reason_to_leave, write

# The last layers of the branches, as GPT-2 and minGPT, torch, LLaMA, timm and others name them.
_ENDS = ("c_proj", "out_proj", "linear2", "o_proj", "down_proj", "wo", "w2", "attn.proj", "mlp.fc2")
BRANCH_ENDS = tuple(f"{start}{end}" for end in _ENDS for start in ("", "*."))


@torch.no_grad()
def residual_scaled_(
    module: nn.Module,
    *,
    names: Sequence[str] = BRANCH_ENDS,
    num_branches: int | None = None,
    std: float | None = None,
    generator: torch.Generator | None = None,
) -> InitReport:
    """Divide the weights that end residual branches by the square root of the number of branches.

    Each branch adds its variance to the stream: N blocks with two branches each let it grow to 1 + 2N. Call it once,
    after the other initializers (a second call scales again); or give ``std``, and the weights are drawn from
    N(0, std^2 / branches) instead.

    Args:
        module: with residual branches anywhere in it.
        names: patterns of the layers that end a branch.
        num_branches: of the whole model; default: the number of layers that match.
        std: as GPT-2 does it, with 0.02; ``None`` scales what is there.
        generator: of the draw.

    Shapes: any weights.
    Unit: standard deviations of weights.
    Law: the standard deviation is the former one, or ``std``, over ``sqrt(num_branches)``.
    Source: Radford et al. 2019 (GPT-2: 1 / sqrt(2N)); for the reason also Zhang et al. 2019, arXiv:1901.09321.

    Raises:
        ValueError: no layer matches; a number of branches below one; a std that is not above zero.

    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False)
    >>> [(row.name, round(row.target_std, 5)) for row in residual_scaled_(encoder, std=0.02).rows[:2]]
    [('layers.0.self_attn.out_proj', 0.00816), ('layers.0.linear2', 0.00816)]
    """
    require(not isinstance(names, str), "names", names, f"a list: [{names!r}]", error=TypeError)
    require(std is None or 0 < std < math.inf, "std", std, "above zero")
    require(num_branches is None or num_branches >= 1, "num_branches", num_branches, "one or more")
    ends = [
        (name, layer)
        for name, layer in module.named_modules()
        if any(fnmatchcase(name, pattern) for pattern in names) and originals(layer, "weight")
    ]
    have = ", ".join(name for name, layer in module.named_modules() if originals(layer, "weight"))
    require(bool(ends), "names", list(names), f"patterns that match a layer with a weight, among {have}")
    factor = 1.0 / math.sqrt(num_branches if num_branches is not None else len(ends))
    done: set[object] = set()
    rows = []
    for name, layer in ends:
        with at_rest(layer):
            rows.append(_scale(name, layer, factor, std, done, generator))
    return InitReport(tuple(rows))


def _scale(
    name: str,
    layer: nn.Module,
    factor: float,
    std: float | None,
    done: set[object],
    generator: torch.Generator | None,
) -> InitRow:
    keys = {key(tensor) for tensor in originals(layer, "weight")}
    skipped = reason_to_leave(layer, "weight") or ("tied: scaled already" if keys & done else None)
    target = measured = None
    if skipped is None:
        done |= keys
        weight = getattr(layer, "weight").detach()  # noqa: B009 - nn.Module knows no weight
        target = factor * (measured_std(weight) if std is None else std)
        values = weight * factor if std is None else draw(weight, target, "normal", generator)
        skipped = write(layer, "weight", values)
        measured = measured_std(getattr(layer, "weight").detach())  # noqa: B009
    if skipped is not None:
        target = measured = None
    return InitRow(name, type(layer).__name__, "linear", "residual", target, measured, skipped)
