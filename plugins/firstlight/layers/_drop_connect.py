"""DropConnectLinear: a linear layer that drops weights, with moment-matched inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight._require import require


class DropConnectLinear(nn.Linear):
    """A linear layer each of whose weights is left out with probability ``p``, by a mask of its own for each sample.

    Training: ``activation((mask * W) x + b)``, not scaled up, as in the paper. Evaluation: the paper's moment
    matching. Over the masks, a unit's sum is nearly normal with mean ``(1 - p) W x + b`` and variance
    ``p (1 - p) W**2 x**2``, and the output is the mean of ``activation`` under that normal distribution. The paper
    averages random draws from it; here the draws are ``num_samples`` fixed quantiles (standardized), so evaluation is
    deterministic. Without an ``activation`` that mean is ``(1 - p) W x + b`` itself. A nonlinearity belongs *inside*,
    as ``activation``: applied behind the layer it sees the mean only, and relu(mean) is not the mean of relu. The bias
    is never masked. :meth:`moments` gives mean and variance to whoever wants more.

    The masks take ``N * out_features * in_features`` values; with ``mask_per="batch"`` all samples share one, which
    costs little and varies the gradient more.

    Shapes: ``[*, in_features]`` to ``[*, out_features]``. Unit: that of a linear layer.
    Law: the mean over masks of the training output is the evaluation output (exactly without an activation); ``p=0``
    is :class:`torch.nn.Linear`.
    Source: Wan et al. 2013, "Regularization of Neural Networks using DropConnect", ICML.

    Raises:
        ValueError: ``p`` outside [0, 1], ``num_samples`` below 1, an unknown ``mask_per``.

    >>> layer = DropConnectLinear(3, 1, p=0.5, activation=nn.ReLU()).eval()
    >>> _ = nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    >>> mean, variance = layer.moments(torch.tensor([[2.0, 2.0, -4.0]]))
    >>> mean.item(), variance.item()
    (0.0, 6.0)
    >>> round(layer(torch.tensor([[2.0, 2.0, -4.0]])).item(), 2)  # sqrt(6 / (2 pi)) = 0.98; relu(mean) would be 0
    0.98
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        p: float = 0.5,
        *,
        bias: bool = True,
        activation: nn.Module | None = None,
        num_samples: int = 64,
        mask_per: str = "sample",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        require(0 <= p <= 1, "p", p, "a probability in [0, 1]")
        require(num_samples >= 1, "num_samples", num_samples, "one or more")
        require(mask_per in ("sample", "batch"), "mask_per", mask_per, "'sample' or 'batch'")
        self.p = p
        self.activation = activation
        self.num_samples = num_samples
        self._quantiles = _standard_quantiles(num_samples)
        self.mask_per = mask_per

    def forward(self, inputs: Tensor) -> Tensor:
        if self.p == 0:
            return self._activate(super().forward(inputs))
        if self.training:
            return self._activate(self._masked(inputs))
        if self.activation is None:
            return F.linear(inputs, (1 - self.p) * self.weight, self.bias)
        mean, variance = self.moments(inputs)
        std = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()  # its gradient is infinite at 0
        std = std.to(mean.dtype)
        total = torch.zeros_like(mean)
        for quantile in self._quantiles:  # one at a time: memory of one output
            total = total + self.activation(mean + quantile * std)
        return total / self.num_samples

    def moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, over the masks, of the sums before the activation."""
        mean = F.linear(inputs, (1 - self.p) * self.weight, self.bias)
        with torch.autocast(inputs.device.type, enabled=False):  # squares do not fit in float16
            wide = torch.promote_types(inputs.dtype, torch.float32)
            squares = self.p * (1 - self.p) * self.weight.to(wide).square()
            return mean, F.linear(inputs.to(wide).square(), squares)

    def _masked(self, inputs: Tensor) -> Tensor:
        if self.mask_per == "batch":
            return F.linear(inputs, self.weight * self._kept(self.weight.shape), self.bias)
        rows = inputs.reshape(-1, self.in_features, 1)
        weights = self.weight * self._kept((len(rows), *self.weight.shape))
        output = torch.bmm(weights, rows).reshape(*inputs.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def _kept(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, device=self.weight.device) >= self.p

    def _activate(self, output: Tensor) -> Tensor:
        return output if self.activation is None else self.activation(output)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


def _standard_quantiles(count: int) -> tuple[float, ...]:
    """Return the normal quantiles in the middle of ``count`` equal shares, scaled to variance 1 (0 if it is one)."""
    shares = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count
    quantiles = torch.special.ndtri(shares)
    if count > 1:
        quantiles = quantiles / quantiles.square().mean().sqrt()
    return tuple(quantiles.tolist())
