"""Write a weight: in place, or through its parametrization; or say why it has to be left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


def originals(layer: nn.Module, attribute: str) -> list[Tensor]:
    """Return the tensors behind a weight: itself, or what its parametrization keeps."""
    if is_parametrized(layer, attribute):
        return list(layer.parametrizations[attribute].parameters(recurse=False))  # type: ignore[union-attr,index]
    value = getattr(layer, attribute, None)
    return [value] if isinstance(value, Tensor) else []


def key(tensor: Tensor) -> tuple[Any, ...]:
    """Identify the storage of a tensor, so that tied weights are known even as two parameters."""
    if tensor.is_meta or nn.parameter.is_lazy(tensor) or tensor.numel() == 0:
        return (id(tensor),)
    try:
        return (tensor.device, tensor.data_ptr())
    except RuntimeError:  # a tensor without storage of its own
        return (id(tensor),)


def reason_to_leave(layer: nn.Module, attribute: str) -> str | None:
    """Say why a weight cannot be filled; ``None`` if it can."""
    if "quantized" in type(layer).__module__:
        return "quantized"
    if any(not isinstance(hook, str) and hasattr(hook, "name") for hook in layer._forward_pre_hooks.values()):
        return "its weight is computed by a forward hook (old-style weight_norm or spectral_norm)"
    tensors = originals(layer, attribute)
    if not tensors:
        return "it has no weight (affine=False)"
    for tensor in tensors:
        if isinstance(tensor, nn.parameter.UninitializedParameter):
            return "lazy: run one forward pass first, or pass example_input"
        reason = _reason(tensor)
        if reason is not None:
            return reason
    return None


def _reason(tensor: Tensor) -> str | None:
    if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        return "quantized or not a floating-point parameter"
    if hasattr(tensor, "device_mesh"):
        return "sharded: initialize before the module is sharded"
    if tensor.is_meta:
        return "on the meta device: materialize the module first"
    if not tensor.requires_grad:
        return "frozen"
    if tensor.numel() == 0:
        return "empty"
    return None


@contextmanager
def at_rest(layer: nn.Module) -> Iterator[None]:
    """Read parametrized weights without side effects: in training mode spectral_norm iterates at every look."""
    chains = layer.parametrizations.modules() if is_parametrized(layer) else ()  # type: ignore[union-attr]
    modes = [(part, part.training) for part in chains]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


@torch.no_grad()
def write(layer: nn.Module, attribute: str, values: Tensor) -> str | None:
    """Give a weight new values; return the reason if its parametrization cannot hold them, which leaves it as it was.

    An in-place fill of a parametrized weight would be lost with the next forward pass. Assignment goes through
    ``right_inverse``, and what comes back is compared: spectral_norm, for one, scales whatever it is given.
    """
    if not is_parametrized(layer, attribute):
        getattr(layer, attribute).copy_(values)
        return None
    chain: Any = layer.parametrizations[attribute]  # type: ignore[index]
    names = ", ".join(type(part).__name__.lstrip("_") for part in chain)
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    wanted = values.to(getattr(layer, attribute))
    try:
        setattr(layer, attribute, wanted)
        same = torch.allclose(getattr(layer, attribute), wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))
        failed = None if same else f"its parametrization ({names}) makes other values of those it is given"
    except (NotImplementedError, RuntimeError, ValueError) as error:
        failed = f"its parametrization ({names}) takes no values: {str(error).splitlines()[0]}"
    if failed is not None:
        chain.load_state_dict(before)
    return failed
