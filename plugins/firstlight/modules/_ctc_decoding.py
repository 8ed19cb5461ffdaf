"""From the frames of a CTC model to labels: the best path, or the best labels that a prefix beam search finds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

_NEVER = -math.inf


def greedy_decode(log_probs: Tensor, lengths: Tensor, *, blank: int) -> list[list[int]]:
    """Return the labels of the likeliest path: repeats merged, then blanks left out.

    Shapes: ``log_probs [N, T, C]`` (or logits), ``lengths [N]``.
    Source: Graves et al. 2006, doi:10.1145/1143844.1143891.
    """
    paths = zip(log_probs.argmax(-1).tolist(), lengths.tolist(), strict=True)
    return [[label for label, _ in itertools.groupby(path[:length]) if label != blank] for path, length in paths]


def beam_decode(log_probs: Tensor, lengths: Tensor, *, blank: int, beam_width: int) -> list[list[int]]:
    """Return the likeliest labels, each summed over its paths, that a search with ``beam_width`` prefixes finds.

    Shapes: ``log_probs [N, T, C]``, ``lengths [N]``.
    """
    samples = zip(log_probs.tolist(), lengths.tolist(), strict=True)
    return [
        list(prefix_beam_search(frames[:length], blank=blank, beam_width=beam_width)[0][0])
        for frames, length in samples
    ]


def prefix_beam_search(
    frames: Sequence[Sequence[float]], *, blank: int, beam_width: int
) -> list[tuple[tuple[int, ...], float]]:
    """Return up to ``beam_width`` labellings with their log-probabilities, the likeliest first.

    A beam is a prefix of labels with two numbers: the log-probability of all paths so far that read as this prefix and
    end in a blank, and of those that end in its last label. Only after a blank does a repeated label count as new.

    Law: with a beam for every prefix the search is exact: ``-ctc_loss`` of each labelling, the likeliest first.
    Source: Graves and Jaitly 2014, PMLR 32(2); Hannun et al. 2014, arXiv:1408.2873. No language model here.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, _NEVER)}
    for frame in frames:
        grown: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (blanked, labelled) in beams.items():
            either = _log_add(blanked, labelled)
            _add(grown, prefix, either + frame[blank], labelled + frame[prefix[-1]] if prefix else _NEVER)
            for label, log_prob in enumerate(frame):
                if label != blank:
                    before = blanked if prefix and label == prefix[-1] else either
                    _add(grown, (*prefix, label), _NEVER, before + log_prob)
        best = sorted(grown, key=lambda prefix: _log_add(*grown[prefix]), reverse=True)[:beam_width]
        beams = {prefix: grown[prefix] for prefix in best}
    return [(prefix, _log_add(*beams[prefix])) for prefix in beams]


def _add(
    beams: dict[tuple[int, ...], tuple[float, float]], prefix: tuple[int, ...], blanked: float, labelled: float
) -> None:
    found = beams.get(prefix, (_NEVER, _NEVER))
    beams[prefix] = _log_add(found[0], blanked), _log_add(found[1], labelled)


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == _NEVER else a + math.log1p(math.exp(b - a))
