"""The weights of a layer: which there are, in which blocks, with which fans."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from firstlight._layers import CONV_LAYERS


class Slot(NamedTuple):
    """One weight of a layer: equal blocks along its first dimension, each initialized as a matrix of its own."""

    attribute: str
    blocks: int
    fan_in: int
    fan_out: int
    hidden: bool = False  # from hidden state to hidden state


def fans(layer: nn.Module, weight: Tensor) -> tuple[int, int]:
    """Return fan in and fan out of one output and one input unit: groups counted, transposed convolutions turned.

    A transposed convolution with stride s adds field / s contributions into each output. ``Bilinear`` has fan in
    ``in1 * in2`` and as fan out the mean over its two inputs.

    >>> import torch
    >>> fans(nn.Conv2d(64, 64, 3, groups=64), torch.empty(64, 1, 3, 3))
    (9, 9)
    >>> fans(nn.ConvTranspose2d(64, 16, 4, stride=2), torch.empty(64, 16, 4, 4))
    (256, 256)
    """
    if isinstance(layer, nn.Bilinear):
        outputs, first, second = weight.shape
        return first * second, outputs * (first + second) // 2
    field = math.prod(weight.shape[2:])
    groups = int(getattr(layer, "groups", 1))
    if isinstance(layer, _ConvTransposeNd):  # weight [in, out / groups, *kernel]
        return max(1, weight.shape[0] // groups * field // math.prod(layer.stride)), weight.shape[1] * field
    return weight.shape[1] * field, weight.shape[0] // groups * field


def gates_of(layer: nn.Module) -> int:
    """Return the number of gates of a recurrent layer."""
    mode = getattr(layer, "mode", type(layer).__name__)
    return 4 if "LSTM" in mode else 3 if "GRU" in mode else 1


def slots(layer: nn.Module) -> list[Slot]:
    """Return the weights of ``layer`` that a plan fills; empty where it has none."""
    if isinstance(layer, nn.RNNBase):
        return [_recurrent_slot(layer, name) for name in _rnn_names(layer)]
    if isinstance(layer, nn.RNNCellBase):
        return [_recurrent_slot(layer, name) for name in ("weight_ih", "weight_hh")]
    if isinstance(layer, nn.MultiheadAttention):
        return _attention_slots(layer)
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or nn.parameter.is_lazy(weight) or weight.dim() < 2:
        return [Slot("weight", 1, 0, 0)]
    grouped = isinstance(layer, CONV_LAYERS)
    return [Slot("weight", int(getattr(layer, "groups", 1)) if grouped else 1, *fans(layer, weight))]


def bias_names(layer: nn.Module) -> list[str]:
    """Return the names of the biases that a plan sets to zero."""
    if isinstance(layer, nn.RNNBase):
        return [name.replace("weight", "bias") for name in _rnn_names(layer) if "_hr_" not in name]
    if isinstance(layer, nn.RNNCellBase):
        return ["bias_ih", "bias_hh"]
    return ["in_proj_bias"] if isinstance(layer, nn.MultiheadAttention) else ["bias"]


def _rnn_names(layer: nn.RNNBase) -> list[str]:
    parts = ("ih", "hh", "hr") if layer.proj_size else ("ih", "hh")
    ends = ("", "_reverse") if layer.bidirectional else ("",)
    return [f"weight_{part}_l{k}{end}" for k in range(layer.num_layers) for end in ends for part in parts]


def _recurrent_slot(layer: nn.Module, name: str) -> Slot:
    rows, columns = getattr(layer, name).shape
    if "_hr" in name:
        return Slot(name, 1, columns, rows)
    gates = gates_of(layer)
    return Slot(name, gates, columns, rows // gates, hidden="_hh" in name)


def _attention_slots(layer: nn.MultiheadAttention) -> list[Slot]:
    size = layer.embed_dim
    if layer._qkv_same_embed_dim:
        found = [Slot("in_proj_weight", 3, size, size)]
    else:
        found = [
            Slot("q_proj_weight", 1, size, size),
            Slot("k_proj_weight", 1, layer.kdim or size, size),
            Slot("v_proj_weight", 1, layer.vdim or size, size),
        ]
    if layer.bias_k is not None:  # learned key and value of [1, 1, E]
        found += [Slot("bias_k", 1, size, size), Slot("bias_v", 1, size, size)]
    return found
