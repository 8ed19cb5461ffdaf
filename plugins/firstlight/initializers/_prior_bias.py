"""prior_bias_: an output layer that starts at the frequencies of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from firstlight._require import require
from firstlight.initializers._write import reason_to_leave

Layer = TypeVar("Layer", bound=nn.Module)


@torch.no_grad()
def prior_bias_(
    layer: Layer,
    class_counts: Tensor | Sequence[float] | float,
    *,
    output: Literal["softmax", "sigmoid"] = "softmax",
    total: float = 1.0,
) -> Layer:
    """Set the bias of an output layer so that, while its weights are small, it predicts the class frequencies.

    Softmax: one count or probability for each output. A layer with one output takes the two counts (negative,
    positive) of a binary problem. ``output="sigmoid"``, for outputs that are each a binary problem: the count of
    positives for each, or one number for all, among ``total`` samples; with the default 1 they are probabilities.

    Shapes: ``class_counts`` [K] for a bias [K]; [2] for a bias [1]; with sigmoid also one number.
    Unit: nats (logits).
    Law: ``softmax(bias) = counts / sum(counts)``; ``sigmoid(bias) = counts / total``. The same layer comes back.
    Source: Lin et al. 2017, arXiv:1708.02002 (probability .01: bias -4.59512).

    Raises:
        ValueError: counts that are not above zero (add one to each for classes never seen), their number is wrong, or
            a layer without a bias that can be set.

    >>> head = prior_bias_(nn.Linear(8, 80), 0.01, output="sigmoid")
    >>> round(head.bias.tolist()[0], 5)
    -4.59512
    >>> prior_bias_(nn.Linear(8, 1), [99, 1]).bias.tolist() == head.bias[:1].tolist()
    True
    """
    bias = getattr(layer, "bias", None)
    ok = isinstance(bias, nn.Parameter) and reason_to_leave(layer, "bias") is None
    require(ok, "layer", type(layer).__name__, "a layer with a trainable bias: build it with bias=True")
    assert isinstance(bias, nn.Parameter)
    require(output in ("softmax", "sigmoid"), "output", output, "'softmax' or 'sigmoid'")
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device="cpu").detach()
    hint = "above zero and finite; add one to each count if a class was never seen"
    require(bool((counts > 0).all()) and bool(counts.isfinite().all()), "class_counts", class_counts, hint)
    outputs = bias.numel()
    if output == "sigmoid":
        fits = counts.dim() == 0 or counts.shape == (outputs,)
        require(fits, "class_counts", tuple(counts.shape), f"one number, or {outputs}, one for each output")
        require(bool((counts < total).all()), "class_counts", class_counts, f"below total={total}")
        bias.copy_((torch.log(counts) - torch.log(total - counts)).expand(outputs).to(bias.dtype))
        return layer
    wanted = 2 if outputs == 1 else outputs
    expected = "2 counts, negative and positive, for one output" if outputs == 1 else f"{outputs}, one for each output"
    require(counts.shape == (wanted,), "class_counts", class_counts, expected)
    log_counts = counts.log()
    logits = log_counts[1:] - log_counts[:1] if outputs == 1 else log_counts - counts.sum().log()
    bias.copy_(logits.to(bias.dtype))
    return layer
