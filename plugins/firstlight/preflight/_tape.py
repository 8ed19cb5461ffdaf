"""What happens inside one training step: calls of modules and of loss functions, activations, losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from firstlight._batch import tensors_of

LOSS_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    F.cross_entropy, F.nll_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss, F.l1_loss,
    F.smooth_l1_loss, F.huber_loss, F.kl_div, F.gaussian_nll_loss, F.poisson_nll_loss, F.ctc_loss,
    F.margin_ranking_loss, F.triplet_margin_loss, F.cosine_embedding_loss, F.multi_margin_loss, F.soft_margin_loss,
    F.multilabel_soft_margin_loss, F.hinge_embedding_loss,
)  # fmt: skip
# Nonlinear functions of one tensor, element by element. nn.ReLU and its like call these too.
_ELEMENTWISE: tuple[Callable[..., Any], ...] = (
    F.relu, torch.relu, Tensor.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus,
    F.hardtanh, F.hardswish, F.hardsigmoid, torch.tanh, Tensor.tanh, F.tanh, torch.sigmoid, Tensor.sigmoid, F.sigmoid,
    torch.clamp, Tensor.clamp,
)  # fmt: skip


# How far from zero these have a slope; beyond it there is less than 3 % of the largest.
SQUASHING: dict[Callable[..., Any], float] = {torch.tanh: 2.5, F.tanh: 2.5, Tensor.tanh: 2.5}
SQUASHING |= {torch.sigmoid: 5.0, F.sigmoid: 5.0, Tensor.sigmoid: 5.0}


@dataclass(frozen=True)
class Call:
    """One call of a module from the step itself, not from inside another module."""

    path: str
    inputs: tuple[Tensor, ...]
    output: Any

    @property
    def is_loss(self) -> bool:
        return isinstance(self.output, Tensor) and self.output.ndim == 0


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function of torch."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Tensor

    @property
    def prediction(self) -> Any:
        return self.args[0] if self.args else self.kwargs.get("input")

    @property
    def target(self) -> Any:
        return self.args[1] if len(self.args) > 1 else self.kwargs.get("target")


@dataclass(frozen=True)
class Activation:
    """One call of an elementwise nonlinear function."""

    path: str  # of the module that called it
    function: Callable[..., Any]
    before: Tensor
    after: Tensor
    args: tuple[Any, ...] = ()  # the others
    kwargs: dict[str, Any] = field(default_factory=dict)

    def slope(self) -> Tensor:
        """Return the derivative at each element."""
        at = self.before.detach().clone().requires_grad_(True)
        kwargs = {key: value for key, value in self.kwargs.items() if key != "inplace"}
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.function(at, *self.args, **kwargs).sum(), at)
        return slope


@dataclass
class Record:
    """What was seen."""

    calls: list[Call] = field(default_factory=list)
    loss_calls: list[LossCall] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)  # of every module, in the order of their ends
    refused: LossCall | None = None  # a loss call that raised

    @property
    def networks(self) -> list[Call]:
        """Calls of modules that gave something other than a scalar."""
        return [call for call in self.calls if not call.is_loss]

    @property
    def head(self) -> Call | None:
        """The last network call whose output can be learned: a teacher, called after it, is none."""
        calls = self.networks
        learned = (call for call in reversed(calls) if any(t.requires_grad for t in tensors_of(call.output)))
        return next(learned, calls[-1] if calls else None)

    @property
    def prediction(self) -> Tensor | None:
        """What the head gave, if that is one tensor of numbers."""
        output = self.head.output if self.head is not None else None
        return output if isinstance(output, Tensor) and output.is_floating_point() else None


def task_of(record: Record) -> float | None:
    """Return the sum of the values that torch's loss functions gave; ``None`` if none was called."""
    values = [float(call.value.detach().mean()) for call in record.loss_calls if call.value.numel()]
    return sum(values) if values else None


class Tape(TorchFunctionMode):
    """Records a step; with ``replacement``, the last network call gives that tensor instead of running."""

    def __init__(self, module: nn.Module, *, detail: bool = False) -> None:
        super().__init__()
        self.record = Record()
        self._module = module
        self._detail = detail  # activations and the outputs of every module
        self._stack: list[str] = []
        self._in_loss = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_loss = func in LOSS_FUNCTIONS
        numbers = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point()  # indices are clamped too
        watched = self._detail and func in _ELEMENTWISE and numbers and not self._in_loss
        before = args[0].detach().clone() if watched else None  # it may be changed in place
        self._in_loss += is_loss
        try:
            value = func(*args, **kwargs)
        except Exception:
            if is_loss:
                self.record.refused = LossCall(func, args, kwargs, torch.full((), torch.nan))
            raise
        finally:
            self._in_loss -= is_loss
        if is_loss and not self._in_loss:
            self.record.loss_calls.append(LossCall(func, args, kwargs, value))
        elif before is not None and not is_loss:
            path = self._stack[-1] if self._stack else ""
            self.record.activations.append(Activation(path, func, before, value.detach(), args[1:], kwargs))
        return value

    @contextlib.contextmanager
    def running(self) -> Iterator[Record]:
        """Listen to every module while the block runs."""
        handles = []
        for path, layer in self._module.named_modules():
            handles.append(layer.register_forward_pre_hook(self._enter(path)))
            handles.append(layer.register_forward_hook(self._leave(path)))
        try:
            with self:
                yield self.record
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._stack.append(path)

        return enter

    def _leave(self, path: str) -> Callable[..., None]:
        def leave(_: nn.Module, args: Any, output: Any) -> None:
            # an exception inside a module leaves its path on the stack
            while self._stack and self._stack.pop() != path:
                pass
            if not self._stack:
                inputs = tuple(tensor for tensor in args if isinstance(tensor, Tensor))
                self.record.calls.append(Call(path, inputs, output))
            if self._detail and isinstance(output, Tensor):
                self.record.outputs.append((path, output))

        return leave


@contextlib.contextmanager
def replaced(module: nn.Module, path: str, nth: int, output: Tensor) -> Iterator[None]:
    """Let the ``nth`` call of the module at ``path`` give ``output`` instead of running it."""
    layer = module.get_submodule(path)
    original, calls = layer.forward, 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return output if calls == nth + 1 else original(*args, **kwargs)

    layer.forward = forward
    try:
        yield
    finally:
        layer.__dict__.pop("forward", None)
