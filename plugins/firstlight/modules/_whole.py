"""Parameters in one piece, where they are used outside a forward, or more than once on the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial


def whole(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of ``layer``; under FSDP2, which gathers them for its forward only, gathered here."""
    let_go(layer)  # a forward before this one may have left what it gathered, whose gradient nobody would reduce
    return _gathered(layer.weight), None if layer.bias is None else _gathered(layer.bias)


def let_go(module: nn.Module) -> None:
    """Let FSDP2 put back into shards what a forward without a backward has left gathered.

    Else the next forward takes it as it is, whatever has become of ``requires_grad`` since.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _gathered(parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return parameter
    mesh = parameter.device_mesh
    # Each rank's gradient is that of its own batch. They are added up on their way back into shards, and FSDP's
    # gradient is their mean.
    full = parameter.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if full.requires_grad:
        full.register_hook(lambda gradient: gradient / mesh.size())  # type: ignore[no-untyped-call]
    return full


@contextmanager
def kept_whole(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Let FSDP2 keep the weights that backward passes inside gather: a gradient of a gradient needs them again.

    Call what is given before the last of them: forwards may have let go of the weights.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]

    def gather() -> None:
        for part in parts:
            part.unshard()

    for part in parts:
        part.set_reshard_after_backward(False, recurse=False)
    try:
        yield gather
    finally:
        for part in parts:
            part.set_reshard_after_backward(True, recurse=False)
            part.reshard()
