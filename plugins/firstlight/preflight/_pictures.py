"""What a page draws of a preflight: what the model receives, and its layers."""

from __future__ import annotations

from typing import Any

import torch

from firstlight.checks import Evidence
from firstlight.preflight._bench import Ran
from firstlight.preflight._layout import Layout

_MOST_IMAGES, _MOST_PIXELS = 12, 64


def inputs_picture(ran: Ran, layout: Layout, batch: Any) -> dict[str, Any]:
    """Describe what the first network call was given: images or a histogram, with labels where there are any."""
    call = next(iter(ran.record.networks), None)
    given = next(iter(call.inputs), None) if call is not None else None
    if given is None:
        return {}
    target = layout.target_of(batch)
    whole = target is not None and target.ndim == 1 and not target.is_floating_point()
    labels = [str(int(label)) for label in target[:_MOST_IMAGES]] if whole and target is not None else []
    if not given.is_floating_point():
        rows = given.reshape(len(given), -1)[:4, :32].tolist() if given.ndim else []
        return {"kind": "tokens", "tokens": rows, "labels": labels}
    values = given.detach().float().cpu()
    finite = values[torch.isfinite(values)]
    if not finite.numel():
        return {}
    edges = torch.linspace(float(finite.min()), float(finite.max()) + 1e-9, 41)
    counts = torch.histc(finite, bins=40, min=float(edges[0]), max=float(edges[-1]))
    picture: dict[str, Any] = {
        "kind": "numbers",
        "histogram": {"edges": edges.tolist(), "counts": [int(count) for count in counts]},
        "labels": labels,
    }
    images = values if values.ndim == 3 else values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else None
    if images is None and values.ndim == 4 and values.shape[1] == 3:
        images = values.movedim(1, -1)
    if images is not None and max(images.shape[1:3]) <= _MOST_PIXELS:
        picture |= {"kind": "images", "images": images[:_MOST_IMAGES].tolist()}
    return picture


def layers_picture(evidence: Evidence) -> dict[str, Any]:
    """Gradient over weight at the start, and update over weight in the first steps, by parameter."""
    gradient = evidence.get("gradient/relative", {})
    update = evidence.get("update/blocks", {})
    names = [name for name in gradient if name in update] or list(gradient)
    return {
        "names": names,
        "gradient": [gradient[name] for name in names],
        "update": [update.get(name, 0.0) for name in names],
    }
