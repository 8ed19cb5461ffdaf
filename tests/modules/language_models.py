"""A small causal transformer, a trigram model to beat, and the text that both learn from: Python's help topics."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.net = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        n, t, width = hidden.shape
        parts = self.mix(self.before(hidden)).view(n, t, 3, self.heads, width // self.heads)
        mixed = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4), is_causal=True)
        hidden = hidden + self.merge(mixed.transpose(1, 2).reshape(n, t, width))
        return hidden + self.net(hidden)


class CausalTransformer(nn.Module):
    """Tokens ``[N, T]`` to hidden states ``[N, T, width]``; pairs of tokens have an embedding of their own."""

    def __init__(self, vocabulary: int, width: int = 64, depth: int = 2, heads: int = 4, context: int = 128) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, width)
        self.pairs = nn.Embedding(vocabulary**2, width)
        self.positions = nn.Embedding(context, width)
        for table in (self.embedding, self.pairs, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.near = nn.Conv1d(width, width, 3)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        pairs = F.pad(tokens, (1, 0))[:, :-1] * self.vocabulary + tokens
        hidden = self.embedding(tokens) + self.pairs(pairs) + self.positions.weight[: tokens.shape[1]]
        hidden = hidden + self.near(F.pad(hidden, (0, 0, 2, 0)).transpose(1, 2)).transpose(1, 2)
        return self.norm(self.blocks(hidden))


@functools.cache
def topics() -> tuple[Tensor, Tensor, int]:
    """Return the bytes of the text, numbered: nine tenths to train on, the last tenth to test, and how many kinds."""
    from pydoc_data.topics import topics as pages

    text = "\n".join(pages[name] for name in sorted(pages))
    kinds, tokens = torch.tensor(list(text.encode())).unique(return_inverse=True)
    cut = int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:], len(kinds)


def windows(tokens: Tensor, context: int) -> Tensor:
    """Cut tokens into rows of ``context + 1``, each beginning with the last token of the row before."""
    return tokens.unfold(0, context + 1, context)


def windows_loader(tokens: Tensor, context: int, batch_size: int, *, shuffle: bool) -> DataLoader:
    return DataLoader(windows(tokens, context), batch_size=batch_size, shuffle=shuffle)


class TopicsData(LightningDataModule):
    """The first windows of the text."""

    def __init__(self, context: int = 32, num_windows: int = 64) -> None:
        super().__init__()
        train, _, self.kinds = topics()
        self.rows = windows(train, context)[:num_windows]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=16)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def trigram_bits(train: Tensor, held_out: Tensor, kinds: int) -> dict[str, float]:
    """Return bits a token of trigram models of all of ``train``, each interpolated down to single tokens."""
    n3 = torch.bincount((train[:-2] * kinds + train[1:-1]) * kinds + train[2:], minlength=kinds**3)
    n3 = n3.view(kinds, kinds, kinds).double()
    n2 = torch.bincount(train[:-1] * kinds + train[1:], minlength=kinds**2).view(kinds, kinds).double()
    n1 = torch.bincount(train, minlength=kinds).double()
    add_one = (n1 + 1) / (n1.sum() + kinds)
    witten_bell = _witten_bell(n3, _witten_bell(n2, add_one))
    after = (n2 > 0).sum(0).double()  # of how many different tokens each is the next one
    kneser_ney = _discounted(n3, _discounted((n3 > 0).sum(0).double(), (after + 1) / (after.sum() + kinds)))
    models = {"Witten-Bell": witten_bell, "Kneser-Ney": kneser_ney}
    seen = held_out[:-2], held_out[1:-1], held_out[2:]
    for p in models.values():
        assert torch.allclose(p.sum(-1), torch.ones_like(p[..., 0])), "probabilities"
    return {name: -p[seen].log2().mean().item() for name, p in models.items()}


def _witten_bell(counts: Tensor, lower: Tensor) -> Tensor:
    """A context gives way to the shorter one as often as it has been followed by something new."""
    total, kinds = counts.sum(-1, keepdim=True), (counts > 0).sum(-1, keepdim=True)
    return torch.where(total > 0, (counts + kinds * lower) / (total + kinds).clamp(min=1), lower)


def _discounted(counts: Tensor, lower: Tensor) -> Tensor:
    """Kneser and Ney's: take a part of every count, as much as Ney estimates, and give it to the shorter context."""
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / (once + 2 * twice)
    total, kinds = counts.sum(-1, keepdim=True), (counts > 0).sum(-1, keepdim=True)
    kept = (counts - discount).clamp(min=0) + discount * kinds * lower
    return torch.where(total > 0, kept / total.clamp(min=1), lower)
