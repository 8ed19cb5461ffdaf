"""Batches of unequal numbers of tokens; run as a program, it trains on them in two gloo processes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from firstlight.callbacks import TokenWeightedAccumulation

COUNTS = [5, 1, 12, 0, 3, 9, 2], [2, 14, 1, 6, 0, 1, 8]  # valid tokens of each micro batch, by rank


def micro_batches(counts: list[int], rank: int) -> list[tuple[Tensor, Tensor]]:
    """Return (tokens, targets) of one sequence per count, the rest of it ignored."""
    generator = torch.Generator().manual_seed(rank)
    batches = []
    for count in counts:
        tokens = torch.randint(11, (1, max(counts) + 1), generator=generator)
        target = torch.randint(11, tokens.shape, generator=generator)
        target[:, count:] = -100
        batches.append((tokens, target))
    return batches


class Tokens(LightningModule):
    """A language model of sorts, in float64, with torch's mean over valid tokens, that never moves."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(11, 6, sparse=sparse, dtype=torch.float64)
        self.head = nn.Linear(6, 11, dtype=torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.head(self.embedding(batch[0])).flatten(0, 1), batch[1].flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Sharded(Tokens):
    def configure_model(self) -> None:
        for part in (self.embedding, self.head):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


def full_batch_gradient(data: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the gradient of the mean over all valid tokens, 0 if there is none, in one process without a Trainer."""
    module = Tokens()
    valid = sum(int((target != -100).sum()) for _, target in data)
    for tokens, target in data:
        logits = module.head(module.embedding(tokens)).flatten(0, 1)
        (cross_entropy(logits, target.flatten(), reduction="sum") / max(valid, 1)).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


class Record(Callback):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in pl_module.parameters()]
        self.seen.append(torch.cat([gradient.detach().flatten() for gradient in grads]).clone())


def main(folder: Path, strategy: str, accumulate: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seen: dict[str, Any] = {}
    for name, callbacks in {"with": [TokenWeightedAccumulation()], "without": []}.items():
        record = Record()
        trainer = Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp" if strategy == "ddp" else ModelParallelStrategy(2, 1),
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            use_distributed_sampler=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[record, *callbacks],
        )
        module = Tokens() if strategy == "ddp" else Sharded()
        with counted_sums(seen if callbacks else {}):
            trainer.fit(module, RankLoader(trainer))
        seen[name] = record.seen
    torch.save(seen, folder / f"rank{trainer.global_rank}.pt")


class RankLoader:
    """The micro batches of the rank that asks."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return len(COUNTS[0])

    def __iter__(self) -> Any:
        return iter(micro_batches(COUNTS[self.trainer.global_rank], self.trainer.global_rank))


@contextmanager
def counted_sums(seen: dict[str, Any]) -> Iterator[None]:
    """Count the sums over ranks of a single number."""
    inner, seen["sums"] = torch.distributed.all_reduce, 0

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen["sums"] += tensor.numel() == 1 and tensor.dtype == torch.float64
        return inner(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counting
    yield
    torch.distributed.all_reduce = inner


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
