"""Trains the generative modules under DDP in two gloo processes, and writes down what each rank saw."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from modules.generative_models import Perceptron
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from firstlight.layers import GaussianNoise
from firstlight.losses import NTXentLoss
from firstlight.modules import ContrastiveModule, GANModule
from helpers import classes_data


class ShardedGAN(GANModule):
    def configure_model(self) -> None:
        for part in (self.generator, self.discriminator):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


def gan(kind: type[GANModule] = GANModule) -> GANModule:
    torch.manual_seed(1)
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    module = kind(
        Perceptron(3, 16, [8]),
        Perceptron(8, 16, [1]),
        latent_dim=3,
        r1=0.1,
        r1_every=2,
        gradient_penalty=0.1,
        discriminator_steps=2,
        generator_optimizer=sgd,
        discriminator_optimizer=sgd,
    )
    torch.manual_seed(100 + int(os.environ.get("LOCAL_RANK", "0")))  # other latents on each rank
    return module


def pairs(num_samples: int = 32) -> TensorDataset:
    """Two fixed views of each sample, and its class."""
    x, target = classes_data(num_samples).tensors
    return TensorDataset(x, x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5)), target)


def contrastive(**kwargs: Any) -> ContrastiveModule:
    optimizer = functools.partial(torch.optim.SGD, lr=0.05)
    return ContrastiveModule(nn.Linear(8, 6), nn.Linear(6, 4), NTXentLoss(), optimizer=optimizer, **kwargs)


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if outputs:
            self.values.append(float(outputs["loss"]))


def train(module: LightningModule, data: Any, strategy: Any, *callbacks: Callback) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # it shuffles
        callbacks=list(callbacks),
    )
    share = DistributedSampler(data, num_replicas=2, rank=int(os.environ.get("LOCAL_RANK", "0")), shuffle=False)
    loader = DataLoader(data, batch_size=8, sampler=share)
    trainer.fit(module, loader, loader)
    return trainer


def flat(module: nn.Module) -> list[float]:
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in module.parameters()]
    return torch.cat([parameter.detach().flatten() for parameter in whole]).tolist()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    found: dict[str, Any] = {}

    module = gan()
    start = flat(module)
    run = train(module, classes_data(64), "ddp_find_unused_parameters_true")
    found |= {"gan": flat(module), "gan moved": start != flat(module)}
    found["gan val"] = float(run.callback_metrics["val/loss/discriminator"])

    module = gan(ShardedGAN)
    train(module, classes_data(64), ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1))
    found["sharded gan"] = flat(module)

    try:
        train(gan(), classes_data(64), "ddp")
    except ValueError as error:
        found["refused"] = str(error)

    torch.manual_seed(1)
    module, losses = contrastive(probe_samples=24), Losses()
    run = train(module, pairs(), "ddp", losses)
    found |= {"contrastive": flat(module), "losses": losses.values}
    found["probe"] = float(run.callback_metrics["val/linear_probe"])
    torch.manual_seed(2)
    module = contrastive(augmentation=GaussianNoise(0.1), probe_samples=7)
    run = train(module, classes_data(32), "ddp")
    found["augmented probe"] = float(run.callback_metrics["val/linear_probe"])
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
