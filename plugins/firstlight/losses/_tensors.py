"""What the losses ask of their tensors: equal shapes, targets of the right kind, enough bits."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Return 16-bit floats as float32; a loss is computed in float32 or better, inside autocast too."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def rows_of(samples: Tensor) -> Tensor:
    """Return ``[N, *]`` as ``[N, D]``, for samples of no dimension and batches of no sample too."""
    return samples.unsqueeze(1).flatten(1)


def require_same_shape(prediction: Tensor, target: Tensor, names: tuple[str, str] = ("prediction", "target")) -> None:
    """Raise ``ValueError`` where torch would broadcast: ``[N, 1]`` against ``[N]`` compares every pair."""
    if prediction.shape != target.shape:
        hint = ""
        if prediction.numel() == target.numel():
            hint = f"; reshape one of them, as {names[1]}.reshape({', '.join(map(str, prediction.shape)) or '[]'})"
        raise ValueError(
            f"{names[1]} must have the shape of {names[0]}, {tuple(prediction.shape)}; got {tuple(target.shape)}{hint}"
        )


def require_floating(target: Tensor, name: str = "target") -> None:
    """Raise ``ValueError`` on integers: they are class labels, or numbers that somebody forgot to convert."""
    if not target.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point numbers; got {target.dtype}: use {name}.float(), or a classification loss "
            "if these are class labels"
        )


def require_probabilities(target: Tensor) -> None:
    """Raise ``ValueError`` unless the targets of a binary loss are floats from 0 to 1.

    Values are looked at on the CPU only, where that needs no wait for a device.
    """
    if not target.is_floating_point():
        raise ValueError(f"target must be floating-point numbers from 0 to 1; got {target.dtype}: use target.float()")
    if target.device.type != "cpu" or not target.numel() or torch.compiler.is_compiling():
        return
    low, high = torch.aminmax(target.detach())
    try:
        ok = bool((low >= 0) & (high <= 1))
    except RuntimeError:  # inside torch.func.vmap a tensor has no one value
        return
    if not ok:
        hint = ": map labels of -1 and 1 by (target + 1) / 2" if float(low) == -1 else ""
        raise ValueError(f"target must be between 0 and 1; got values from {float(low):g} to {float(high):g}{hint}")
