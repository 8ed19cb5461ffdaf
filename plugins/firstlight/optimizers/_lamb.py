"""LAMB: Adam's direction, with a step as long as the layer's weights ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight._require import require

# On a CPU one operation over many tensors streams them all through memory, and the next one does so again. Batches
# whose five tensors a parameter stay in the cache save that, and still save calls where tensors are small.
_CPU_BATCH = 16_384
_SMALL_DECAY = 1e-4
_LONG = 1_000_000

_Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


class LAMB(Optimizer):
    """Layer-wise adaptive moments for batches of many thousands: version 5 of the paper, to the letter.

    Shapes: parameters of any shape; each tensor is one layer of the paper.
    Unit: ``lr`` is the length of a step over the length of the weights: 0.01 moves each tensor by 1 %.
    Law: ``r = m_hat / (sqrt(v_hat) + eps)``, ``u = r + weight_decay * p``, ``p -= lr * phi(|p|) / |u| * u``; where
    ``|p|`` or ``|u|`` is 0, ``p -= lr * u``. So ``|change of p| == lr * |p|`` at every step.
    Source: You et al. 2020, arXiv:1904.00962v5, Algorithm 2.
    Raises: ``ValueError`` for arguments out of range; ``RuntimeError`` for sparse gradients and complex parameters.

    Gradients are left as they are: clipping belongs to the Trainer. The moments of half-precision parameters are kept
    in float32, and so is the arithmetic; norms too. There is no host-device sync, and nothing waits for the device.

    Args:
        params: parameters or groups of them; every argument below may also be given per group.
        lr: a number, or a tensor of one element.
        betas: decay of the means of gradients and of their squares.
        eps: added to the root of the second moment.
        weight_decay: weight of the parameters in the direction, inside the normalization.
        phi: (lowest, highest) value of ``|p|`` in the ratio; default: as it is.
        adapt: False takes ``p -= lr * u`` always; the authors' own code does so for biases and norms, in a group
            of their own.
        maximize: go up instead of down.
        foreach: one operation for many tensors (default, and True): all at once on an accelerator, on a CPU in batches
            that stay in the cache; False goes tensor by tensor.
        capturable: keep the number of steps on the device, so that a CUDA graph can record the step.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = LAMB([weight], lr=0.1, weight_decay=0.0)
    >>> weight.grad = torch.tensor([1e-3, 1e3])
    >>> optimizer.step()
    >>> round((weight - torch.tensor([3.0, 4.0])).norm().item(), 5)  # 0.1 * |weight|
    0.5
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        phi: tuple[float, float] | None = None,
        adapt: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        if isinstance(lr, Tensor):
            require(lr.numel() == 1, "lr", tuple(lr.shape), "a number or a tensor of one element")
        else:
            require(0.0 <= lr < math.inf, "lr", lr, "a finite number, zero or more")
        require(len(betas) == 2 and all(0.0 <= b < 1.0 for b in betas), "betas", betas, "two numbers in [0, 1)")
        require(eps >= 0.0, "eps", eps, "zero or more, such as 1e-6")
        require(weight_decay >= 0.0, "weight_decay", weight_decay, "zero or more")
        ordered = phi is None or (len(phi) == 2 and 0.0 <= phi[0] <= phi[1] and phi[1] > 0.0)
        require(ordered, "phi", phi, "None, or the lowest and the highest norm, such as (0.0, 10.0)")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "phi": phi,
            "adapt": adapt,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; ``closure`` computes the loss again and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._take_group(group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; moments of half-precision parameters stay in float32."""
        super().load_state_dict(state_dict)
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(numbers, parameters, strict=True):
            state = self.state.get(parameter)
            if state and _is_half(parameter):  # torch has just rounded the moments to the type of the parameter
                for key in ("exp_avg", "exp_avg_sq"):
                    exact = state_dict["state"][number][key]
                    state[key] = exact.to(parameter.device, torch.float32, copy=True)
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if state and not group["capturable"]:  # a file may have been read onto the device
                    state["step"] = state["step"].cpu()

    def _take_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        states = [self._state_of(p, capturable=group["capturable"]) for p in params]
        grads = [p.grad for p in params]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        counts = [state["step"] for state in states]
        if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
            require(group["capturable"], "capturable", False, "True while a CUDA graph is captured")
        if group["capturable"]:
            torch._foreach_add_(counts, 1)
        else:  # a number would be wrapped into a tensor for each count; alpha keeps torch from reading this one
            torch._foreach_add_(counts, torch.tensor(1.0), alpha=1.0)
            counts = [count.item() for count in counts]  # on the CPU: no sync
        for start, stop in _batches(params, counts, alone=group["foreach"] is False or group["capturable"]):
            part = slice(start, stop)
            _take_step(params[part], grads[part], means[part], squares[part], counts[start], group)

    def _state_of(self, parameter: Tensor, *, capturable: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            raise RuntimeError("LAMB does not take sparse gradients; use Embedding(sparse=False), or SparseAdam for it")
        if not state:
            if parameter.is_complex():
                raise RuntimeError("LAMB takes real parameters; keep a complex one as torch.view_as_real(...)")
            dtype = torch.float32 if _is_half(parameter) else parameter.dtype
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if capturable else "cpu")
            state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
        return state


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _batches(params: list[Tensor], counts: list[Any], *, alone: bool) -> Iterator[tuple[int, int]]:
    """Cut ``params`` where device, type or number of steps change, and on a CPU where the cache is full."""
    if alone:
        yield from ((i, i + 1) for i in range(len(params)))
        return
    start, kind, room = 0, None, 0.0
    for i, (param, count) in enumerate(zip(params, counts, strict=True)):
        here, size = (param.device, param.dtype, count), param.numel()
        if here != kind or size > room:
            if i > start:
                yield start, i
            start, kind, room = i, here, _CPU_BATCH if param.device.type == "cpu" else math.inf
        room -= size
    yield start, len(params)


def _take_step(
    weights: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    step: float | Tensor,
    group: dict[str, Any],
) -> None:
    """Move ``weights``, which have all taken ``step - 1`` steps before.

    With ``root = sqrt(1 - b2^t)`` and ``scale = root / (1 - b1^t)`` the direction is
    ``r = scale * m / (sqrt(v) + eps * root)``: the corrections need no pass over memory of their own.
    """
    beta1, beta2 = group["betas"]
    half = _is_half(weights[0])
    params = [p.float() for p in weights] if half else weights
    grads = [g.float() for g in grads] if half else grads
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    dtype = params[0].dtype
    root = _correction(beta2, step, dtype) ** 0.5
    scale = root / _correction(beta1, step, dtype)
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    denominators: _Tensors = torch._foreach_sqrt(squares)
    if isinstance(root, Tensor):  # not _foreach_add_, which reads the number
        denominators = [denominator.add_(group["eps"] * root) for denominator in denominators]
    else:
        torch._foreach_add_(denominators, group["eps"] * root)
    updates, scale = _directions(params, means, denominators, scale, group["weight_decay"])
    _move(params, updates, scale, group)
    if half:
        torch._foreach_copy_(weights, params)


def _correction(beta: float, step: float | Tensor, dtype: torch.dtype) -> Any:
    """Return ``1 - beta ** step``."""
    if isinstance(step, Tensor):  # in float32 the plain form is off by 6e-5 at the first step with a beta of 0.999
        return -torch.expm1(step.to(dtype) * (math.log(beta) if beta > 0 else -math.inf))
    return 1 - beta**step


def _directions(
    params: list[Tensor], means: list[Tensor], denominators: _Tensors, scale: float | Tensor, decay: float
) -> tuple[_Tensors, float | Tensor]:
    """Return ``u`` of each layer, and a number that it is still to be multiplied by."""
    if decay == 0:
        return torch._foreach_div(means, denominators), scale
    if isinstance(scale, Tensor):
        scaled = (mean / denominator * scale for mean, denominator in zip(means, denominators, strict=True))
        return [update.add_(param, alpha=decay) for update, param in zip(scaled, params, strict=True)], 1.0
    if decay < _SMALL_DECAY or not _is_plain(params[0]):  # r / decay might overflow; a DTensor has no _foreach_addcdiv
        updates = torch._foreach_div(means, denominators)
        torch._foreach_add_(updates, params, alpha=decay / scale)
        return updates, scale
    # u / decay = p + r / decay: one pass less, and for a single tensor (a big one, most likely) no memory for it
    if len(params) == 1:
        out = denominators[0]
        return [torch.addcdiv(params[0], means[0], out, value=scale / decay, out=out)], decay
    return torch._foreach_addcdiv(params, means, denominators, scale / decay), decay


def _move(params: list[Tensor], updates: _Tensors, scale: float | Tensor, group: dict[str, Any]) -> None:
    lr, phi = group["lr"], group["phi"]
    rates: Iterable[float | Tensor]
    if not group["adapt"]:
        rates = [lr * scale] * len(params)
    elif group["capturable"] or not _is_on_host(params[0]):
        before, after = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
        target = before if phi is None else before.clamp(*phi)
        rates = (lr * torch.where((before > 0) & (after > 0), target / after, scale)).unbind()
    else:  # numbers are quicker than tensors of one element
        rates = []
        # On a CPU torch adds one number after the other: of 50M in float32 the norm is off by 0.2 %.
        dtype = torch.float64 if params[0].numel() > _LONG else None
        lengths, sizes = torch._foreach_norm(params, dtype=dtype), torch._foreach_norm(updates, dtype=dtype)
        for length, size in zip(lengths, sizes, strict=True):
            long, wide = length.item(), size.item()
            wanted = long if phi is None else min(max(long, phi[0]), phi[1])
            rates.append(float(lr) * (wanted / wide if long > 0 and wide > 0 else scale))
    for param, update, rate in zip(params, updates, rates, strict=True):
        if isinstance(rate, Tensor):
            param.addcmul_(update, rate.reshape(()), value=-1)
        else:
            param.add_(update, alpha=-rate)


def _is_on_host(tensor: Tensor) -> bool:
    """Whether reading a number of ``tensor`` waits for nobody: neither a device nor, as with a DTensor, other ranks."""
    return tensor.device.type == "cpu" and _is_plain(tensor)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)
