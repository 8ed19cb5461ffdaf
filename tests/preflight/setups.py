"""Small sound set-ups of many kinds: a module, its loaders, and the arguments of the Trainer to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.losses import (
    AdversarialLoss,
    CTCLoss,
    GaussianKLLoss,
    LinearCrossEntropyLoss,
    NTXentLoss,
    ReconstructionLoss,
)
from helpers import Plain, Wrapped, classes_data, loader, network, supervised


class Setup(NamedTuple):
    module: LightningModule
    data: Any
    trainer: dict[str, Any]


class Step(LightningModule):
    """A module whose step is a function of the batch."""

    def __init__(self, lr: float = 3e-3, **parts: nn.Module) -> None:
        super().__init__()
        self.lr = lr
        for name, part in parts.items():
            setattr(self, name, part)

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def rows(*tensors: Tensor, batch_size: int = 32, collate: Callable[[Any], Any] | None = None) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(*tensors), batch_size, shuffle=True, generator=generator, collate_fn=collate)


def classifier() -> Setup:
    x, y = classes_data(352).tensors
    return Setup(supervised(), (rows(x[:256], y[:256]), rows(x[256:], y[256:])), {})


class DictBatches(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["x"], batch["label"]), batch_idx)


def as_dict(samples: Any) -> dict[str, Tensor]:
    x, y = torch.utils.data.default_collate(samples)
    return {"label": y, "x": x}


def dict_batches() -> Setup:
    return Setup(DictBatches(), rows(*classes_data(256).tensors, collate=as_dict), {})


def frozen_trunk() -> Setup:
    trunk = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
    trunk.requires_grad_(False)
    return Setup(Plain(nn.Sequential(trunk, nn.Linear(64, 4)), lr=0.01), loader(num_samples=256), {})


def compiled() -> Setup:
    module = Plain(Wrapped(network()))
    module.net.compile(backend="eager")
    return Setup(module, loader(num_samples=256), {})


class Adversaries(LightningModule):
    """Two nets against each other, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
        self.loss = AdversarialLoss()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        first, second = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        first.zero_grad()
        self.manual_backward(self.loss.discriminator(self.critic(real), self.critic(fake.detach())))
        first.step()
        second.zero_grad()
        self.manual_backward(self.loss.generator(self.critic(fake)))
        second.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (self.critic, self.generator)]


def adversaries() -> Setup:
    return Setup(Adversaries(), rows(F.normalize(torch.randn(256, 2))), {})


class Autoencoder(Step):
    def loss(self, batch: Any) -> Tensor:
        (x,) = batch
        mean, log_variance = self.encoder(x).chunk(2, 1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.reconstruction(self.decoder(code), x) + self.kl(mean, log_variance)


def autoencoder() -> Setup:
    parts = {"encoder": nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))}
    parts["decoder"] = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32))
    centers = (torch.randn(4, 32) > 0).float()
    x = (centers[torch.arange(256) % 4] - (torch.rand(256, 32) < 0.05).float()).abs()
    losses = {"reconstruction": ReconstructionLoss(likelihood="bernoulli"), "kl": GaussianKLLoss()}
    return Setup(Autoencoder(**parts, **losses, lr=1e-2), rows(x), {})


class TwoViews(Step):
    def loss(self, batch: Any) -> Tensor:
        (x,) = batch
        first, second = (self.net(x + 0.1 * torch.randn_like(x)) for _ in range(2))
        return self.objective(first, second)


def contrastive() -> Setup:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    return Setup(TwoViews(net=net, objective=NTXentLoss(temperature=0.1)), rows(classes_data(256).tensors[0]), {})


class Transcriber(Step):
    def loss(self, batch: Any) -> Tensor:
        x, target, frames, letters = batch
        log_probabilities = self.net(x).log_softmax(-1).transpose(0, 1)
        return self.objective(log_probabilities, target, frames, letters)


def transcription() -> Setup:
    letters = torch.randint(1, 5, (128, 4))
    x = F.one_hot(letters.repeat_interleave(3, 1), 5).float() + 0.1 * torch.randn(128, 12, 5)
    net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 5))
    lengths = torch.full((128,), 12), torch.full((128,), 4)
    return Setup(Transcriber(net=net, objective=CTCLoss(), lr=1e-2), rows(x, letters, *lengths), {})


class Tokens(nn.Module):
    """Hidden states that see what came before."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.embed, self.back = nn.Embedding(12, 16), nn.GRU(16, 16, batch_first=True, bidirectional=not causal)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.back(self.embed(tokens))[0]


class Language(Step):
    """The head's weight is the embedding's: tied."""

    def loss(self, batch: Any) -> Tensor:
        (tokens,) = batch
        return self.objective(self.net(tokens[:, :-1]), self.net.embed.weight, tokens[:, 1:])


def language() -> Setup:
    start, step = torch.randint(0, 12, (128, 1)), torch.randint(1, 3, (128, 9))
    tokens = (start + step.cumsum(1)) % 12
    return Setup(Language(net=Tokens(), objective=LinearCrossEntropyLoss(), lr=1e-2), rows(tokens), {})


class Bags(Step):
    def loss(self, batch: Any) -> Tensor:
        words, target = batch
        return F.cross_entropy(self.head(self.bag(words)), target)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def sparse_bags() -> Setup:
    target = torch.arange(256) % 3
    words = torch.randint(0, 10, (256, 6)) + 10 * target[:, None]
    return Setup(Bags(bag=nn.EmbeddingBag(30, 8, sparse=True), head=nn.Linear(8, 3)), rows(words, target), {})


def accumulating() -> Setup:
    return Setup(supervised(), loader(num_samples=256), {"accumulate_grad_batches": 4})


def bf16() -> Setup:
    return Setup(supervised(), loader(num_samples=256), {"precision": "bf16-mixed"})


SETUPS = {
    make.__name__: make
    for make in (
        classifier, dict_batches, frozen_trunk, compiled, adversaries, autoencoder, contrastive, transcription,
        language, sparse_bags, accumulating, bf16,
    )
}  # fmt: skip


def made(name: str) -> Setup:
    torch.manual_seed(0)
    return SETUPS[name]()
