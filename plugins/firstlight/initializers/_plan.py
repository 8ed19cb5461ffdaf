"""InitPlan: which layer gets which initializer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from firstlight._layers import CONV_LAYERS, NORM_LAYERS
from firstlight._require import did_you_mean, require
from firstlight._spec import build, is_spec
from firstlight.initializers._feeds import RECURRENT_LAYERS
from firstlight.initializers._gain import FAMILY, FEEDS

LayerKind: TypeAlias = Literal["linear", "conv", "norm", "embedding", "recurrent", "attention"]
Scheme: TypeAlias = Literal["he", "xavier", "lecun", "normal", "orthogonal", "gates", "ones", "zeros", "keep"]
Fan: TypeAlias = Literal["fan_in", "fan_out"]
Distribution: TypeAlias = Literal["normal", "uniform", "truncated_normal"]

_KINDS: dict[LayerKind, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear, nn.Bilinear),
    "conv": CONV_LAYERS,
    "norm": NORM_LAYERS,
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "recurrent": RECURRENT_LAYERS,
    "attention": (nn.MultiheadAttention,),
}

_LARGEST = 65504


def layer_kind(layer: nn.Module) -> LayerKind | None:
    """Return the kind of ``layer``, or ``None`` if no plan speaks about it."""
    return next((kind for kind, types in _KINDS.items() if isinstance(layer, types)), None)


@dataclass(frozen=True)
class InitRule:
    """How to fill the layers that it matches; an empty condition matches all.

    Args:
        scheme: ``he`` (std ``gain / sqrt(fan)``), ``xavier`` (std ``gain * sqrt(2 / (fan_in + fan_out))``), ``lecun``
            (``he`` with gain 1), ``normal`` (``std``), ``orthogonal`` (orthonormal rows or columns times ``gain``),
            ``gates`` (recurrent layers: hidden weights orthogonal and input weights Xavier, each gate by itself),
            ``ones`` (weight 1, bias 0), ``zeros``, ``keep``.
        kinds: linear, conv, norm, embedding, recurrent, attention.
        feeds: activations that the layer feeds, e.g. relu, tanh, linear; relu means relu6 and prelu too, and so on.
        names: a pattern of layer names, as in :mod:`fnmatch`: ``"head*"``.
        fan: the fan of ``he``: ``fan_in`` keeps the forward signal, ``fan_out`` the gradient.
        distribution: normal, uniform or truncated_normal (cut at two standard deviations), all of the same variance.
        std: standard deviation of ``normal``.
        gain: in place of the one that belongs to what the layer feeds. Xavier takes 1 before tanh, sigmoid and their
            kin, as Glorot did; orthogonal takes 1 always.
        forget_bias: of LSTMs, the sum of the two biases of the forget gate.

    Raises:
        ValueError: an unknown word, or a number out of its range.

    >>> InitRule("xavier", feeds=["tanh"], distribution="uniform").scheme
    'xavier'
    """

    scheme: Scheme
    kinds: Sequence[LayerKind] = ()
    feeds: Sequence[str] = ()
    names: str | None = None
    fan: Fan = "fan_in"
    distribution: Distribution = "normal"
    std: float | None = None
    gain: float | None = None
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        _one_of("scheme", self.scheme, get_args(Scheme))
        _one_of("fan", self.fan, get_args(Fan))
        _one_of("distribution", self.distribution, get_args(Distribution))
        for name, values in (("kinds", self.kinds), ("feeds", self.feeds)):
            require(not isinstance(values, str), name, values, f"a list: [{values!r}]", error=TypeError)
            object.__setattr__(self, name, tuple(values))
        for kind in self.kinds:
            require(kind in _KINDS, "kinds", kind, f"among {', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}")
        for fed in self.feeds:
            require(fed in FEEDS, "feeds", fed, f"among {', '.join(FEEDS)}{did_you_mean(fed, FEEDS)}")
        require(
            (self.std is not None) == (self.scheme == "normal"), "std", self.std, "given for the scheme 'normal' only"
        )
        require(self.std is None or 0 <= self.std < math.inf, "std", self.std, "zero or more")
        require(self.gain is None or 0 < self.gain < math.inf, "gain", self.gain, "above zero")
        for name in ("std", "gain", "forget_bias"):
            value = getattr(self, name)
            require(
                value is None or abs(value) <= _LARGEST, name, value, f"a number that float16 holds, up to {_LARGEST}"
            )
        recurrent = self.scheme != "gates" or list(self.kinds) == ["recurrent"]
        require(recurrent, "kinds", list(self.kinds), "['recurrent'] for the scheme 'gates'")

    def matches(self, name: str, kind: LayerKind, feeds: str) -> bool:
        """Whether the rule speaks about this layer."""
        return (
            (not self.kinds or kind in self.kinds)
            and (not self.feeds or feeds in self.feeds or FAMILY.get(feeds) in self.feeds)
            and (self.names is None or fnmatchcase(name, self.names))
        )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    require(value in known, name, value, f"one of {', '.join(known)}{did_you_mean(value, known)}")


@dataclass(frozen=True)
class InitPlan:
    """Rules in order of precedence: the first that matches a layer fills it; without a match it stays as it is.

    From a configuration file a rule may be a mapping of its arguments, or a spec with ``class_path``.

    >>> plan = InitPlan([InitRule("zeros", names="head"), *InitPlan.recommended().rules])
    >>> plan.rule_for("head", "linear", "linear").scheme
    'zeros'
    >>> InitPlan([{"scheme": "normal", "std": 0.02}]).rules[0].std
    0.02
    """

    rules: Sequence[InitRule]

    def __post_init__(self) -> None:
        ok = isinstance(self.rules, Sequence) and not isinstance(self.rules, str)
        require(ok, "rules", self.rules, "a list of InitRule", error=TypeError)
        object.__setattr__(self, "rules", tuple(_as_rule(rule, i) for i, rule in enumerate(self.rules)))

    @classmethod
    def recommended(cls) -> InitPlan:
        """The field's standard choices.

        Linear feeding ReLU and its kin: He, fan in. Conv feeding them: He, fan out, counted per group. Feeding tanh or
        sigmoid: Xavier, uniform. Feeding nothing (a head, a projection): LeCun, so that outputs start at the scale of
        the inputs. LSTM, GRU, RNN: hidden weights orthogonal and input weights Xavier, each gate by itself; forget
        bias 1. Attention: Xavier, uniform, queries, keys and values each by themselves. Embeddings: N(0, 0.02), the
        padding row stays zero. Norm layers: weight 1, bias 0. Other biases: 0.

        Source: He et al. 2015, arXiv:1502.01852; Glorot and Bengio 2010; LeCun et al. 1998; Saxe et al. 2013,
        arXiv:1312.6120; Jozefowicz et al. 2015; Radford et al. 2019.
        """
        return cls(
            [
                InitRule("ones", kinds=["norm"]),
                InitRule("normal", kinds=["embedding"], std=0.02),
                InitRule("gates", kinds=["recurrent"]),
                InitRule("xavier", kinds=["attention"], distribution="uniform"),
                InitRule("xavier", feeds=["tanh", "sigmoid"], distribution="uniform"),
                InitRule("lecun", feeds=["linear", "gate"]),
                InitRule("he", kinds=["conv"], fan="fan_out"),
                InitRule("he", kinds=["linear"]),
            ]
        )

    def rule_for(self, name: str, kind: LayerKind, feeds: str) -> InitRule | None:
        """Return the first rule that matches."""
        return next((rule for rule in self.rules if rule.matches(name, kind, feeds)), None)


def _as_rule(value: Any, index: int) -> InitRule:
    name = f"rules[{index}]"
    if is_spec(value):
        value = build(value, base=InitRule, name=name)
    elif isinstance(value, Mapping):
        known = list(InitRule.__dataclass_fields__)
        for key in value:
            _one_of(f"{name} key", key, known)
        require("scheme" in value, name, dict(value), "a rule with a scheme")
        value = InitRule(**value)
    require(isinstance(value, InitRule), name, value, "an InitRule or a mapping of its arguments", error=TypeError)
    rule: InitRule = value
    return rule
