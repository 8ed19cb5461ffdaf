"""A small causal transformer, norms before branches, that knows pairs of bytes from the start."""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two residual branches: attention, which looks back, and a network for each token alone."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.down_proj = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Add both branches to ``[N, T, width]``."""
        hidden = hidden + self.dropout(self.out_proj(self.attend(self.attention_norm(hidden))))
        network = self.down_proj(self.gelu(self.up_proj(self.network_norm(hidden))))
        return hidden + self.dropout(network)

    def attend(self, hidden: Tensor) -> Tensor:
        """Mix each token with those before it; no token sees a later one."""
        samples, length, width = hidden.shape
        parts = self.qkv(hidden).view(samples, length, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return mixed.transpose(1, 2).reshape(samples, length, width)


class CausalTransformer(nn.Module):
    """Tokens ``[N, T]`` to hidden states ``[N, T, width]``; the head that makes logits is the module's.

    Each token comes with an embedding of itself, of its place, and of the pair that it makes with the token
    before. Attention would find pairs too, but late: they are most of what a minute of training can learn.
    Pairs share the rows of a table by a hash, as in the Byte Latent Transformer (Pagnoni et al. 2024,
    arXiv:2412.09871).

    Args:
        vocabulary: Number of tokens: 256, one for each byte.
        pairs: Rows of the table of pairs; 0 for a transformer without.
        width: Numbers a token.
        depth: Number of blocks.
        heads: Number of heads of attention.
        context: Largest T.
        dropout: Share of each branch that is dropped in training.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 256,
        pairs: int = 8192,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        context: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.pairs = nn.Embedding(pairs, width) if pairs else None
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the hidden state of each token, which knows the tokens up to it."""
        hidden = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        if self.pairs is not None:
            before = F.pad(tokens, (1, 0))[:, :-1]
            # Two primes spread the pairs over the rows.
            hidden = hidden + self.pairs((before * 257 + tokens * 31) % self.pairs.num_embeddings)
        states: Tensor = self.norm(self.blocks(hidden))
        return states
