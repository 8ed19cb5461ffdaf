"""Steps of LAMB on a network sharded over two gloo processes and on the whole one; prints the largest difference."""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from firstlight.optimizers import LAMB


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def work(rank: int, meeting: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    whole, sharded = network(), network()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    x = torch.randn(16, 8, dtype=torch.float64)
    for module in (whole, sharded):
        optimizer = LAMB(module.parameters(), lr=0.05, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (module(x) ** 2).mean().backward()
            optimizer.step()
    pairs = zip(whole.parameters(), sharded.parameters(), strict=True)
    difference = max(float((b.detach().full_tensor() - a.detach()).abs().max()) for a, b in pairs)
    if rank == 0:
        print(difference)
    dist.barrier()  # a rank that leaves early takes the connection with it
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
