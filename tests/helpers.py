"""Small real things to train: a module with dropout and batch norm, data that shuffles, a Trainer that is quiet."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from firstlight.losses import CrossEntropyLoss
from firstlight.modules import SupervisedModule


def classes_data(num_samples: int = 96, num_features: int = 8, num_classes: int = 4) -> TensorDataset:
    """Return separable classes, always the same ones."""
    generator = torch.Generator().manual_seed(7)
    target = torch.arange(num_samples) % num_classes
    centers = 2 * torch.randn(num_classes, num_features, generator=generator)
    return TensorDataset(centers[target] + torch.randn(num_samples, num_features, generator=generator), target)


def loader(*, workers: int = 0, shuffle: bool = True, batch_size: int = 8, **kwargs: Any) -> DataLoader:
    return DataLoader(
        classes_data(**kwargs),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


class ResumableLoader:
    """Shuffles by epoch and goes on after a resume with the batch that would have come next."""

    def __init__(self, num_samples: int = 40, batch_size: int = 8) -> None:
        self.data = classes_data(num_samples)
        self.batch_size = batch_size
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        if self.batch == len(self):  # a Trainer that knows the length does not ask for the end
            self.epoch, self.batch = self.epoch + 1, 0
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.epoch))
        while self.batch < len(self):
            chosen = order[self.batch * self.batch_size : (self.batch + 1) * self.batch_size]
            self.batch += 1
            yield self.data[chosen]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


def network(dropout: float = 0.25) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4))


def supervised(*, lr: float = 0.1, momentum: float = 0.9, **kwargs: Any) -> SupervisedModule:
    torch.manual_seed(1)
    kwargs = {"model": network(), "loss": CrossEntropyLoss(label_smoothing=0.1)} | kwargs
    optimizer = functools.partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=1e-3)
    return SupervisedModule(**({"optimizer": optimizer} | kwargs))


class CountReads(TorchDispatchMode):
    """Counts the places where Python waits for a value of a tensor."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Plain(LightningModule):
    """A LightningModule of somebody else's: knows nothing of firstlight."""

    def __init__(self, net: nn.Module | None = None, lr: float = 0.1) -> None:
        super().__init__()
        self.net = net or network()
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=0.9)


class Wrapped(nn.Module):
    """A net in a class of the user's: ``torch.nn.Sequential.compile()`` compiles nothing (torch 2.13)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.layers = net

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class TwoOptimizers(Plain):
    """Manual optimization: a layer each, one after the other in every batch, which Lightning counts as two steps."""

    def __init__(self, lr: float = 0.1) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), lr=lr)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=self.lr) for layer in self.net]


class Rates(Callback):
    """Records the rate of every group as the optimizer sees it, step by step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, ...]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(tuple(float(group["lr"]) for group in optimizer.param_groups))


class SaveEveryStep(Callback):
    """Leaves a checkpoint after each optimizer step, named by its number."""

    def __init__(self, folder: Any) -> None:
        self.folder, self.saved = folder, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self.saved:
            self.saved = trainer.global_step
            trainer.save_checkpoint(self.folder / f"{self.saved:02d}.ckpt")


def fp16_on_the_cpu(**scaler: Any) -> MixedPrecision:
    """Return what "16-mixed" is on a GPU, with a scaler; on a CPU Lightning would take bf16."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scaler))


def trainer(**kwargs: Any) -> Trainer:
    """Return a quiet Trainer on the CPU; arguments override."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 5,
    }
    return Trainer(**(defaults | kwargs))


def fit(module: LightningModule, *callbacks: Any, data: Any = None, val: Any = None, ckpt: Any = None, **kwargs: Any):
    """Train from a fixed seed; return the Trainer."""
    seed_everything(3, workers=True, verbose=False)
    run = trainer(callbacks=list(callbacks), **kwargs)
    run.fit(module, loader() if data is None else data, val, ckpt_path=ckpt)
    return run


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
