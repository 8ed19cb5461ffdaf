"""Decoders of CTC against all paths there are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from firstlight.modules._ctc_decoding import beam_decode, greedy_decode, prefix_beam_search


def read(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """Merge repeats, leave out blanks: by hand."""
    labels: list[int] = []
    last = None
    for label in path:
        if label != last and label != blank:
            labels.append(label)
        last = label
    return tuple(labels)


def all_labellings(log_probs: torch.Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Return the log-probability of every labelling, summed over every path."""
    found: dict[tuple[int, ...], list[float]] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        found.setdefault(read(path, blank), []).append(sum(log_probs[t, c].item() for t, c in enumerate(path)))
    return {labels: torch.tensor(paths, dtype=torch.float64).logsumexp(0).item() for labels, paths in found.items()}


def some_log_probs(frames: int, classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(frames, classes, generator=generator, dtype=torch.float64)).log_softmax(-1)


SIZES = [(1, 2, 0), (2, 3, 0), (3, 3, 1), (4, 3, 2), (5, 3, 0), (6, 2, 1), (6, 3, 2), (4, 5, 4)]


@pytest.mark.parametrize(("frames", "classes", "blank"), SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_a_beam_for_every_prefix_the_search_is_exact(frames, classes, blank, seed):
    log_probs = some_log_probs(frames, classes, seed)
    expected = all_labellings(log_probs, blank)
    found = prefix_beam_search(log_probs.tolist(), blank=blank, beam_width=10**6)
    possible = {labels: value for labels, value in found if value > -math.inf}
    assert possible.keys() == expected.keys()
    for labels, value in possible.items():
        assert value == pytest.approx(expected[labels], abs=1e-9)
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    best = max(expected, key=lambda labels: expected[labels])
    lengths = torch.tensor([frames])
    assert beam_decode(log_probs[None], lengths, blank=blank, beam_width=10**6) == [list(best)]
    assert sum(math.exp(value) for _, value in found) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_its_probabilities_are_those_of_the_loss(seed):
    log_probs = some_log_probs(9, 4, seed)
    for labels, value in prefix_beam_search(log_probs.tolist(), blank=0, beam_width=10**6)[:20]:
        loss = F.ctc_loss(
            log_probs[:, None], torch.tensor([labels]), torch.tensor([9]), torch.tensor([len(labels)]), reduction="sum"
        )
        assert -value == pytest.approx(loss.item(), abs=1e-9)


@pytest.mark.parametrize(("frames", "classes", "blank"), SIZES)
def test_greedy_reads_the_likeliest_path(frames, classes, blank):
    log_probs = torch.stack([some_log_probs(frames, classes, seed) for seed in range(4)])
    found = greedy_decode(log_probs, torch.full((4,), frames), blank=blank)
    for sample, labels in zip(log_probs, found, strict=True):
        paths = itertools.product(range(classes), repeat=frames)
        best = max(paths, key=lambda path: sum(sample[t, c].item() for t, c in enumerate(path)))
        assert tuple(labels) == read(best, blank)


def test_the_likeliest_path_is_not_the_likeliest_reading():
    """Graves' example: two frames, each 0.6 blank and 0.4 "a"; the path "--" has 0.36, all that read "a" 0.64."""
    log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()[None]
    lengths = torch.tensor([2])
    assert greedy_decode(log_probs, lengths, blank=0) == [[]]
    assert beam_decode(log_probs, lengths, blank=0, beam_width=2) == [[1]]
    ((labels, value), *_) = prefix_beam_search(log_probs[0].tolist(), blank=0, beam_width=2)
    assert (labels, math.exp(value)) == ((1,), pytest.approx(0.64))


def test_frames_past_the_length_do_not_count():
    log_probs = torch.stack([some_log_probs(7, 4, seed) for seed in range(3)])
    lengths = torch.tensor([7, 4, 0])
    for decode in (greedy_decode, lambda *args, **kwargs: beam_decode(*args, beam_width=8, **kwargs)):
        found = decode(log_probs, lengths, blank=0)
        alone = [
            decode(log_probs[i : i + 1, :n], torch.tensor([n]), blank=0)[0] for i, n in enumerate(lengths.tolist())
        ]
        assert found == alone
        assert found[2] == []


def test_a_wider_beam_finds_at_least_as_much_as_greedy():
    """Not a law of narrow beams; here the width is that of all prefixes."""
    for seed in range(10):
        log_probs = some_log_probs(5, 4, seed)
        greedy = tuple(greedy_decode(log_probs[None], torch.tensor([5]), blank=0)[0])
        everything = all_labellings(log_probs, 0)
        (best, value) = prefix_beam_search(log_probs.tolist(), blank=0, beam_width=10**6)[0]
        assert value >= everything[greedy] - 1e-9
        assert everything[best] == pytest.approx(value)


def test_impossible_labels_stay_impossible():
    """-inf is a log-probability too, and -inf plus -inf is not NaN."""
    log_probs = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64).log()
    assert beam_decode(log_probs, torch.tensor([3]), blank=0, beam_width=20) == [[1, 2]]
    found = prefix_beam_search(log_probs[0].tolist(), blank=0, beam_width=20)
    assert found[0][1] == pytest.approx(0.0)
    assert not any(math.isnan(value) for _, value in found)
