"""InitPlan: which layer gets which initializer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, get_args

from torch import nn

from firstlight._layers import CONV_LAYERS, NORM_LAYERS
from firstlight._require import did_you_mean, require

LayerKind: TypeAlias = Literal["linear", "conv", "norm", "embedding"]
Scheme: TypeAlias = Literal["he", "xavier", "lecun", "normal", "ones", "zeros", "keep"]

_KINDS: dict[LayerKind, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear, nn.Bilinear),
    "conv": CONV_LAYERS,
    "norm": NORM_LAYERS,
    "embedding": (nn.Embedding, nn.EmbeddingBag),
}


def layer_kind(layer: nn.Module) -> LayerKind | None:
    """Return the kind of ``layer``, or ``None`` if no plan speaks about it."""
    return next((kind for kind, types in _KINDS.items() if isinstance(layer, types)), None)


@dataclass(frozen=True)
class InitRule:
    """How to fill the layers that it matches; an empty condition matches all.

    Args:
        scheme: ``he`` (std ``gain / sqrt(fan)``), ``xavier`` (std ``gain * sqrt(2 / (fan_in + fan_out))``), ``lecun``
            (``he`` with gain 1), ``normal`` (``std``), ``ones`` (weight 1, bias 0), ``zeros``, ``keep``.
        kinds: linear, conv, norm, embedding.
        feeds: activations that the layer feeds, e.g. relu, tanh, linear.
        names: a pattern of layer names, as in :mod:`fnmatch`: ``"head*"``.
        fan: the fan of ``he``: ``fan_in`` keeps the forward signal, ``fan_out`` the gradient.
        distribution: normal or uniform, of the same variance.
        std: standard deviation of ``normal``.
    """

    scheme: Scheme
    kinds: Sequence[LayerKind] = ()
    feeds: Sequence[str] = ()
    names: str | None = None
    fan: Literal["fan_in", "fan_out"] = "fan_in"
    distribution: Literal["normal", "uniform"] = "normal"
    std: float | None = None

    def __post_init__(self) -> None:
        schemes = get_args(Scheme)
        known = ", ".join(schemes)
        require(self.scheme in schemes, "scheme", self.scheme, f"one of {known}{did_you_mean(self.scheme, schemes)}")
        for kind in self.kinds:
            require(kind in _KINDS, "kinds", kind, f"among {', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}")
        require(
            (self.std is not None) == (self.scheme == "normal"), "std", self.std, "given for the scheme 'normal' only"
        )
        require(self.std is None or 0 <= self.std < math.inf, "std", self.std, "zero or more")

    def matches(self, name: str, kind: LayerKind, feeds: str) -> bool:
        """Whether the rule speaks about this layer."""
        return (
            (not self.kinds or kind in self.kinds)
            and (not self.feeds or feeds in self.feeds)
            and (self.names is None or fnmatchcase(name, self.names))
        )


@dataclass(frozen=True)
class InitPlan:
    """Rules in order of precedence: the first that matches a layer fills it; without a match it stays as it is.

    >>> plan = InitPlan([InitRule("zeros", names="head"), *InitPlan.recommended().rules])
    >>> plan.rule_for("head", "linear", "linear").scheme
    'zeros'
    """

    rules: Sequence[InitRule]

    @classmethod
    def recommended(cls) -> InitPlan:
        """The field's standard choices.

        Linear feeding ReLU and its kin: He, fan in. Conv feeding them: He, fan out, counted per group. Feeding tanh or
        sigmoid: Xavier, uniform. Feeding nothing (a head, a projection): LeCun, so that outputs start at the scale of
        the inputs. Embeddings: N(0, 0.02), the padding row stays zero. Norm layers: weight 1, bias 0. Other biases: 0.

        Source: He et al. 2015, arXiv:1502.01852; Glorot and Bengio 2010; LeCun et al. 1998; Radford et al. 2019.
        """
        return cls(
            [
                InitRule("ones", kinds=["norm"]),
                InitRule("normal", kinds=["embedding"], std=0.02),
                InitRule("xavier", feeds=["tanh", "sigmoid"], distribution="uniform"),
                InitRule("lecun", feeds=["linear"]),
                InitRule("he", kinds=["conv"], fan="fan_out"),
                InitRule("he", kinds=["linear"]),
            ]
        )

    def rule_for(self, name: str, kind: LayerKind, feeds: str) -> InitRule | None:
        """Return the first rule that matches."""
        return next((rule for rule in self.rules if rule.matches(name, kind, feeds)), None)
