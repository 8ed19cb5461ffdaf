"""Cross-entropy of a linear layer's outputs, without ever holding all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction
from firstlight._require import require
from firstlight.losses._token_targets import check_token_options, valid_tokens

# torch 2.13 has F.linear_cross_entropy, which also works in chunks and computes gradients in the forward pass. It is
# not called here: at its default chunk it takes 1.6 times as long as full cross-entropy on a CPU, it falls back to
# full logits under label smoothing, has no z-loss, gives NaN gradients where no target counts and a bfloat16 loss
# under autocast, cannot be differentiated twice, and is not in the older torch that the package supports. Where it is
# defined the tests compare with it.

# Logits held at a time: two buffers of this many bytes. Smaller ones make the matrix products slow.
_BUFFER_BYTES = 2**26
_HALF = (torch.float16, torch.bfloat16)
_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def linear_cross_entropy_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Cross-entropy of the logits ``hidden @ weight.T + bias``, computed a chunk of tokens at a time.

    The gradients are computed along with the loss, into one pair of buffers of ``chunk_tokens`` rows (default: as
    many rows as fill 64 MiB); a second backward pass computes them again, and a backward pass that is itself
    differentiated holds all logits, as plain cross-entropy does. ``class_weight`` is the ``weight`` of cross-entropy:
    one number per class, which scales all that a token with that target contributes.

    Shapes: ``hidden [..., H]``, ``weight [V, H]``, ``target [...]``, ``bias [V]``, ``class_weight [V]``; to ``[]``, or
    ``[...]`` unreduced.
    Unit: nats a token; the mean is ``sum(losses) / sum(class weights of the targets that count)``. Float32 or better:
    16-bit inputs are multiplied with float32 sums, and gradients are added up over chunks in float32.
    Law: ``linear_cross_entropy_loss(h, W, y) == cross_entropy_loss(h @ W.T, y)``, plus
    ``z_loss * logsumexp(logits)**2``; a batch in which nothing counts gives 0 with zero gradients.
    Source: z-loss, Chowdhery et al. 2022, arXiv:2204.02311; gradients in the forward pass, Hsu et al. 2024 (Liger),
    arXiv:2410.10989.

    Raises:
        ValueError: shapes that do not fit, options out of range, on the CPU also targets outside the vocabulary.

    >>> hidden, weight = torch.zeros(2, 5, 8), torch.zeros(4, 8)
    >>> linear_cross_entropy_loss(hidden, weight, torch.ones(2, 5, dtype=torch.long))  # ln 4
    tensor(1.3863)
    """
    check_reduction(reduction)
    check_token_options(label_smoothing, z_loss)
    require(chunk_tokens is None or chunk_tokens >= 1, "chunk_tokens", chunk_tokens, "at least 1, or None")
    _check_shapes(hidden, weight, target, bias, class_weight)
    valid, safe = valid_tokens(target.reshape(-1), weight.shape[0], ignore_index)
    work = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    class_weight = None if class_weight is None else class_weight.detach().to(work)
    share = valid.to(work) if class_weight is None else valid * class_weight[safe]
    settings = _Settings(work, label_smoothing, z_loss, chunk_tokens, reduction == "none", torch.is_grad_enabled())
    flat = hidden.reshape(-1, hidden.shape[-1])
    with torch.autocast(hidden.device.type, enabled=False):
        losses: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            settings, flat, weight, bias, safe, share, valid, class_weight
        )
    if reduction == "none":
        return losses.reshape(target.shape)
    return losses if reduction == "sum" else _mean(losses, share)


def _mean(total: Tensor, share: Tensor) -> Tensor:
    count = share.sum()
    return total / torch.where(count > 0, count, torch.ones_like(count))


def _check_shapes(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, class_weight: Tensor | None
) -> None:
    fits = weight.ndim == 2 and hidden.ndim >= 1 and hidden.shape[-1] == weight.shape[1]
    shapes = f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}"
    require(fits, "hidden and weight", shapes, "of shapes [..., H] and [V, H]")
    require(
        target.shape == hidden.shape[:-1],
        "target",
        tuple(target.shape),
        f"of the shape of hidden without its last dimension, {tuple(hidden.shape[:-1])}",
    )
    for name, vector in (("bias", bias), ("class_weight", class_weight)):
        ok = vector is None or vector.shape == weight.shape[:1]
        require(ok, name, vector if vector is None else tuple(vector.shape), f"of shape [V], {tuple(weight.shape[:1])}")


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class _Settings(NamedTuple):
    work: torch.dtype
    smoothing: float
    z_loss: float
    chunk_tokens: int | None
    unreduced: bool
    training: bool


class _LinearCrossEntropy(torch.autograd.Function):
    """Each token's loss, or the sum of them."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, *tensors: Any) -> Tensor:
        ctx.settings = settings
        ctx.save_for_backward(*tensors)
        # Unreduced, each loss gets a factor of its own in the backward pass: its gradients cannot be added up now.
        now = settings.training and not settings.unreduced
        needs = ctx.needs_input_grad[1:4] if now else (False, False, False)
        losses, ctx.gradients = _Head(settings, *tensors).run(needs)
        return losses if settings.unreduced else losses.sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors, settings, needs = ctx.saved_tensors, ctx.settings, ctx.needs_input_grad[1:4]
        (factor,) = upstream
        if torch.is_grad_enabled():  # create_graph=True: autograd must see every operation
            losses = _Head(settings, *tensors).dense()
            wanted = [x for x, need in zip(tensors, needs, strict=False) if need]
            value = losses if settings.unreduced else losses.sum()
            found = iter(torch.autograd.grad(value, wanted, factor, create_graph=True))
            return None, *(next(found) if need else None for need in needs), None, None, None, None
        if settings.unreduced:
            gradients = _Head(settings, *tensors).run(needs, factor)[1]
        else:
            # Nobody else has seen these buffers: scaled in place and handed on, they are not there for a second pass.
            gradients, ctx.gradients = ctx.gradients, None
            gradients = gradients or _Head(settings, *tensors).run(needs)[1]
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(factor)
        cast = (g if g is None else g.to(x.dtype) for g, x in zip(gradients, tensors, strict=False))
        return None, *cast, None, None, None, None


class _Head:
    r"""The losses of flat tokens, and the gradients of their (weighted) sum.

    With logits z, s = logsumexp(z) and smoothing e over V classes, a token with target y costs::

        (1 - e) w_y (s - z_y)  +  e/V sum_c w_c (s - z_c)  +  z_loss w_y s^2

    so its gradient by z is ``total softmax(z) - hard onehot(y) - even w`` with ``hard = (1 - e) w_y``, ``even = e/V``
    and ``total = hard + even sum(w) + 2 z_loss w_y s``. It is applied in three parts:
    ``total (softmax(z) - onehot(y))``, the only one that needs logits, with the difference of two numbers that may
    both be near 1 taken before anything else is rounded; ``(total - hard) onehot(y)``, which picks rows of the weight;
    and ``-even w``, through ``sum_c w_c z_c = h . (W^T w) + b . w``.
    """

    def __init__(
        self,
        settings: _Settings,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        share: Tensor,
        valid: Tensor,
        class_weight: Tensor | None,
    ) -> None:
        self.settings, self.hidden, self.weight, self.target, self.share = settings, hidden, weight, target, share
        work = settings.work
        self.bias = None if bias is None else bias.to(work)
        self.even = valid.to(work) * (settings.smoothing / weight.shape[0])
        self.class_weight = torch.ones_like(weight[:, 0], dtype=work) if class_weight is None else class_weight
        self.operand = hidden.dtype if _multiplies_16_bit_into_32(hidden) else work

    def product(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        if self.operand == self.settings.work:
            return torch.mm(a, b, out=out)
        return torch.mm(a.to(self.operand), b, self.settings.work, out=out)

    def dense(self) -> Tensor:
        """Return the losses from all logits at once, in operations that autograd knows."""
        work, settings = self.settings.work, self.settings
        logits = self.hidden.to(work) @ self.weight.to(work).t()
        if self.bias is not None:
            logits = logits + self.bias
        log_sum = logits.logsumexp(1)
        hard = log_sum - logits.gather(1, self.target[:, None]).squeeze(1)
        losses = self.share * (1 - settings.smoothing) * hard
        if settings.z_loss:  # 0 times a square that overflows is NaN
            losses = losses + self.share * settings.z_loss * log_sum.square()
        if settings.smoothing:
            losses = losses + self.even * ((log_sum[:, None] - logits) @ self.class_weight)
        return losses

    def run(self, needs: tuple[bool, ...], factor: Tensor | None = None) -> tuple[Tensor, Gradients]:
        """Return the losses, and the gradients of ``factor @ losses`` by those inputs that need one."""
        settings, work = self.settings, self.settings.work
        matrix = self.weight.to(self.operand)
        pulled = self.weight.to(work).t() @ self.class_weight if settings.smoothing else None
        rows = _rows_that_count(self.share + self.even)
        num_rows = len(self.target) if rows is None else len(rows)
        size = settings.chunk_tokens or _BUFFER_BYTES // (len(matrix) * work.itemsize)
        size = max(1, min(size, num_rows))
        buffers = torch.empty(2, size, len(matrix), dtype=work, device=matrix.device)
        losses = self.share.new_zeros(len(self.target))
        by_hidden = torch.zeros_like(self.hidden, dtype=work) if needs[0] else None
        by_weight = torch.zeros_like(self.weight, dtype=work) if needs[1] else None
        by_bias = torch.zeros_like(self.bias) if needs[2] and self.bias is not None else None

        for start in range(0, num_rows, size):
            index = slice(start, start + size) if rows is None else rows[start : start + size]
            h, y = self.hidden[index].to(self.operand), self.target[index]
            logits, log_p = buffers[:, : len(y)]
            self.product(h, matrix.t(), out=logits)
            if self.bias is not None:
                logits.add_(self.bias)
            torch.log_softmax(logits, 1, out=log_p)
            losses[index], total, hard, even = self.terms(h, y, logits, log_p, pulled, index)
            if not any(needs):
                continue
            if factor is not None:
                total, hard, even = total * factor[index], hard * factor[index], even * factor[index]
            rest = total - hard
            p = torch.exp(log_p, out=logits)
            p.scatter_add_(1, y[:, None], p.new_full((len(y), 1), -1.0))
            if by_hidden is not None:
                part = self.product(p, matrix).mul_(total[:, None])
                if pulled is not None or settings.z_loss:
                    part.addcmul_(rest[:, None], self.weight[y].to(work))
                by_hidden[index] = part if pulled is None else part.sub_(even[:, None] * pulled)
            h = h.to(work)
            if by_weight is not None:
                if self.operand == work:
                    by_weight.addmm_(p.t(), h * total[:, None])
                else:
                    by_weight.add_(self.product(p.t(), (h * total[:, None]).to(self.operand)))
                if pulled is not None or settings.z_loss:
                    by_weight.index_add_(0, y, rest[:, None] * h)
                if pulled is not None:
                    by_weight.addr_(self.class_weight, even @ h, alpha=-1)
            if by_bias is not None:
                by_bias.addmv_(p.t(), total).index_add_(0, y, rest).sub_(self.class_weight * even.sum())
        return losses, (by_hidden, by_weight, by_bias)

    def terms(
        self, h: Tensor, y: Tensor, logits: Tensor, log_p: Tensor, pulled: Tensor | None, index: slice | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a chunk's losses, and the factors of its gradients: total, hard and even."""
        share, even, z_loss = self.share[index], self.even[index], self.settings.z_loss
        counts = share + even > 0  # an ignored token stands for class 0, whose logit may be -inf
        log_p_y = log_p.gather(1, y[:, None]).squeeze(1)
        log_sum = (logits.gather(1, y[:, None]).squeeze(1) - log_p_y).where(counts, 0.0)
        log_p_y = log_p_y.where(counts, 0.0)
        hard = share * (1 - self.settings.smoothing)
        losses, total = -hard * log_p_y, hard
        if z_loss:  # 0 times a square that overflows is NaN
            losses = losses + z_loss * share * log_sum.square()
            total = total + 2 * z_loss * share * log_sum
        if pulled is not None:
            offset = 0.0 if self.bias is None else self.bias @ self.class_weight
            mass = self.class_weight.sum()
            losses = losses + even * (mass * log_sum - h.to(pulled.dtype) @ pulled - offset)
            total = total + even * mass
        return losses, total, hard, even


def _multiplies_16_bit_into_32(hidden: Tensor) -> bool:
    """Only CUDA does, and torch can ask it to from 2.8 on; elsewhere the operands are made float32."""
    return hidden.is_cuda and hidden.dtype in _HALF and _TORCH >= (2, 8)


def _rows_that_count(share: Tensor) -> Tensor | None:
    """Return the tokens worth computing; ``None`` for all of them, and where finding out would stall the device."""
    if share.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    rows = share.nonzero().squeeze(1)
    return None if len(rows) == len(share) else rows


class LinearCrossEntropyLoss(nn.Module):
    """Module form of :func:`linear_cross_entropy_loss`; the weight of the linear layer is given at every call.

    Shapes: ``hidden [..., H]``, ``weight [V, H]``, ``target [...]``, ``bias [V]``; to ``[]``, or ``[...]`` unreduced.
    Unit: nats a token; the mean is over the tokens that count.
    Law: equals :class:`CrossEntropyLoss` of ``hidden @ weight.T + bias``, in a fraction of the memory.
    Source: Hsu et al. 2024 (Liger), arXiv:2410.10989; z-loss, Chowdhery et al. 2022, arXiv:2204.02311.

    ``class_weight`` may be a tensor or a list of one non-negative number per class.

    Raises:
        ValueError: options out of range; when called, shapes that do not fit.

    >>> head = nn.Linear(8, 100)
    >>> loss = LinearCrossEntropyLoss(label_smoothing=0.1, z_loss=1e-4)
    >>> loss(torch.randn(2, 5, 8), head.weight, torch.ones(2, 5, dtype=torch.long), head.bias).shape
    torch.Size([])
    """

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        check_token_options(label_smoothing, z_loss)
        require(chunk_tokens is None or chunk_tokens >= 1, "chunk_tokens", chunk_tokens, "at least 1, or None")
        if class_weight is not None and not isinstance(class_weight, Tensor):
            class_weight = torch.tensor(class_weight, dtype=torch.get_default_dtype())
        if class_weight is not None:
            ok = class_weight.ndim == 1 and bool((class_weight >= 0).all())
            require(ok, "class_weight", class_weight, "one non-negative number per class")
        self.register_buffer("class_weight", class_weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.chunk_tokens = chunk_tokens

    def forward(self, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_cross_entropy_loss(
            hidden,
            weight,
            target,
            bias,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            chunk_tokens=self.chunk_tokens,
        )

    @torch.no_grad()
    def minimum(self, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the lowest value that any logits could reach on this target: the entropy of the smoothed target.

        >>> loss = LinearCrossEntropyLoss(label_smoothing=0.1)
        >>> loss.minimum(torch.zeros(1, 2), torch.zeros(10, 2), torch.tensor([3]))
        tensor(0.5003)
        """
        _check_shapes(hidden, weight, target, bias, self.class_weight)
        valid, safe = valid_tokens(target, len(weight), self.ignore_index)
        work = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        scale = torch.ones_like(weight[:, 0], dtype=work) if self.class_weight is None else self.class_weight.to(work)
        # For each class as the target: the mass at that class, at every other, and in all. The z-loss can be 0.
        even = scale * (self.label_smoothing / len(weight))
        own = even + (1 - self.label_smoothing) * scale
        mass = even.sum() - even + own
        elsewhere = torch.xlogy(even, even).sum() - torch.xlogy(even, even)
        floor = (torch.xlogy(mass, mass) - torch.xlogy(own, own) - elsewhere).clamp(min=0)
        losses = floor[safe] * valid
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else _mean(losses.sum(), scale[safe] * valid)
