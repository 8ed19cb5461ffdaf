"""Orthogonal matrices: of a whole weight, and of each gate of a recurrent one."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from firstlight._require import require
from firstlight.initializers._fans import gates_of, slots
from firstlight.initializers._write import reason_to_leave, write

Target = TypeVar("Target", Tensor, nn.Module)


@torch.no_grad()
def orthogonal_(tensor: Tensor, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Fill ``tensor``, as a matrix of its first dimension by the rest, with orthonormal rows or columns.

    Unlike torch's it works in half precision too (the decomposition runs in single precision).

    Shapes: any with two dimensions or more.
    Unit: none.
    Law: ``W W^T = gain^2 I`` if wide or square, ``W^T W = gain^2 I`` if tall; the distribution is Haar's. The variance
    is ``gain^2 / max(rows, columns)``. The same tensor comes back.
    Source: Saxe et al. 2013, arXiv:1312.6120.

    Raises:
        ValueError: fewer than two dimensions, an integer tensor, or one on the meta device.

    >>> w = orthogonal_(torch.empty(3, 5, dtype=torch.bfloat16))
    >>> bool((w.float() @ w.float().T - torch.eye(3)).abs().max() < 0.02)
    True
    """
    require(tensor.dim() >= 2, "tensor", tuple(tensor.shape), "of two dimensions or more")
    require(tensor.is_floating_point() and not tensor.is_meta, "tensor", _kind(tensor), "floating-point with storage")
    require(0 < gain < math.inf, "gain", gain, "above zero")
    if tensor.numel() == 0:
        return tensor
    rows, columns = tensor.shape[0], tensor[0].numel()
    dtype = tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32
    device = tensor.device if generator is None else generator.device
    shape = (max(rows, columns), min(rows, columns))
    q, r = torch.linalg.qr(torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator))
    q *= torch.where(r.diagonal() < 0, -gain, gain).to(q)  # signs of R: else the distribution leans
    return tensor.copy_((q if rows >= columns else q.T).reshape(tensor.shape))


def orthogonal_gates_(
    target: Target, *, num_gates: int | None = None, gain: float = 1.0, generator: torch.Generator | None = None
) -> Target:
    """Make the hidden weights of a recurrent layer orthogonal, each gate by itself.

    ``target`` is an LSTM, GRU, RNN or one of their cells, of which the hidden-to-hidden weights are filled; or one
    weight of ``num_gates`` stacked gates. One orthogonal matrix over all gates, as torch and keras make it, leaves
    each gate with singular values anywhere between 0 and 1.

    Shapes: weight ``[num_gates * H, H]``; ``num_gates`` defaults to rows / columns.
    Unit: none.
    Law: every singular value of every gate is ``gain``. The same object comes back.
    Source: Saxe et al. 2013, arXiv:1312.6120; Jozefowicz et al. 2015.

    Raises:
        ValueError: rows that ``num_gates`` does not divide; weights that cannot be filled (frozen, quantized, ...).
        TypeError: neither a tensor nor a recurrent layer.

    >>> lstm = orthogonal_gates_(nn.LSTM(3, 8))
    >>> forget = lstm.weight_hh_l0[8:16]
    >>> torch.allclose(forget @ forget.T, torch.eye(8), atol=1e-5)
    True
    """
    if isinstance(target, Tensor):
        require(target.dim() == 2, "target", tuple(target.shape), "a weight of two dimensions")
        gates = num_gates if num_gates is not None else max(1, target.shape[0] // max(1, target.shape[1]))
        require(gates >= 1 and target.shape[0] % gates == 0, "num_gates", gates, f"a divisor of {target.shape[0]} rows")
        square = num_gates is not None or target.shape[0] == gates * target.shape[1]
        require(square, "num_gates", num_gates, f"given for a weight of shape {tuple(target.shape)}")
        with torch.no_grad():
            for block in target.chunk(gates):
                orthogonal_(block, gain=gain, generator=generator)
        return target
    recurrent = isinstance(target, (nn.RNNBase, nn.RNNCellBase))
    require(recurrent, "target", type(target).__name__, "a tensor or a recurrent layer", error=TypeError)
    gates = gates_of(target)
    require(num_gates in (None, gates), "num_gates", num_gates, f"{gates}, or None, for {type(target).__name__}")
    hidden = [slot.attribute for slot in slots(target) if slot.hidden]
    for name in hidden:
        reason = reason_to_leave(target, name)
        require(reason is None, name, reason, "a weight that can be filled")
    for name in hidden:
        values = getattr(target, name).detach().clone()
        failed = write(target, name, orthogonal_gates_(values, num_gates=gates, gain=gain, generator=generator))
        require(failed is None, name, failed, "a weight that can be filled")
    return target


def _kind(tensor: Tensor) -> str:
    return "on the meta device" if tensor.is_meta else str(tensor.dtype)
