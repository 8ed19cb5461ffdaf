"""Tokens drawn one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from firstlight._require import require
from firstlight.modules._token_batch import are_integers


def generate_tokens(
    next_logits: Callable[[Tensor], Tensor],
    prompt: Tensor,
    num_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue ``prompt``; ``next_logits`` maps tokens ``[N, T]`` to logits ``[N, V]``, on whatever device it likes.

    Shapes: ``prompt [T]`` or ``[N, T]``, integers; to ``[T + num_tokens]`` or ``[N, T + num_tokens]``.

    Raises:
        ValueError: a prompt without a token, options out of range.
    """
    ok = are_integers(prompt) and prompt.ndim in (1, 2) and prompt.shape[-1] >= 1
    require(ok, "prompt", prompt, "integers of shape [T] or [N, T], T at least 1")
    require(num_tokens >= 0, "num_tokens", num_tokens, "zero or more")
    require(temperature >= 0, "temperature", temperature, "zero (always the likeliest token) or more")
    require(top_k is None or top_k >= 1, "top_k", top_k, "one or more, or None")
    tokens = prompt.long().reshape(-1, prompt.shape[-1])
    for _ in range(num_tokens):
        logits = next_logits(tokens).float()
        keep = 1 if temperature == 0 else min(top_k or logits.shape[1], logits.shape[1])
        logits, candidates = logits.topk(keep)
        if keep > 1:
            drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            candidates = candidates.gather(1, drawn)
        tokens = torch.cat([tokens.to(candidates.device), candidates], dim=1)
    return tokens.reshape(*prompt.shape[:-1], -1)
