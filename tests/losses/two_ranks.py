"""One step of contrastive losses in two gloo processes, each with half of the batch; writes down loss and gradients."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from firstlight.losses import InfoNCELoss, NTXentLoss, nt_xent_loss


class Contrastive(nn.Module):
    """An encoder and its loss, called once a step as DDP wants it."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 5)).double()
        self.loss = loss

    def forward(self, first: Tensor, second: Tensor, *more: Tensor) -> Tensor:
        return self.loss(self.encoder(first), self.encoder(second), *more)


def cases(gather: bool) -> dict[str, Contrastive]:
    torch.set_default_dtype(torch.float64)
    try:
        return {
            "nt_xent": Contrastive(NTXentLoss(temperature=0.1, gather=gather)),
            "nt_xent chunks": Contrastive(NTXentLoss(temperature=0.1, gather=gather, chunk_size=3)),
            "info_nce": Contrastive(InfoNCELoss(gather=gather)),
            "info_nce both": Contrastive(InfoNCELoss(gather=gather, symmetric=True, learnable_temperature=True)),
            "info_nce queue": Contrastive(InfoNCELoss(gather=gather)),
        }
    finally:
        torch.set_default_dtype(torch.float32)


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    second = first + 0.5 * torch.randn(16, 6, generator=generator, dtype=torch.float64)
    return first, second, torch.randn(7, 5, generator=generator, dtype=torch.float64)


def step(name: str, module: nn.Module, first: Tensor, second: Tensor, queue: Tensor) -> tuple[float, list[float]]:
    loss = module(first, second, *([queue] if name.endswith("queue") else []))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in module.parameters()]).tolist()


def second_order(rank: slice, gather: bool) -> list[float]:
    """Return the gradient of this rank's share of a penalty on the loss's own gradient."""
    first, second, _ = data()
    first, second = first[rank].requires_grad_(), second[rank]
    # z1 is differentiated through the ranks; the sum of its squares is each rank's own
    gradient = torch.autograd.grad(nt_xent_loss(first, second, gather=gather), first, create_graph=True)[0]
    gradient.square().sum().backward()
    return first.grad.flatten().tolist()


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    first, second, queue = data()
    half = slice(8 * rank, 8 * rank + 8)
    found = {}
    for name, module in cases(gather=True).items():
        parallel = nn.parallel.DistributedDataParallel(module)
        found[name] = step(name, parallel, first[half], second[half], queue)
    found["local"] = nt_xent_loss(first[half], second[half], gather=False).item()
    found["second order"] = second_order(half, gather=True)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()  # a rank that leaves early takes the connection with it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
