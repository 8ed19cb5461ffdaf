"""MaxNorm and GradientNoise in real fits."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from firstlight.callbacks import GradientNoise, MaxNorm
from helpers import Plain, fit, same, supervised, weights


def test_max_norm_holds_after_every_step():
    class Look(Callback):
        largest = 0.0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            norms = [
                layer.weight.detach().norm(dim=1).max() for layer in pl_module.modules() if isinstance(layer, nn.Linear)
            ]
            self.largest = max(self.largest, *map(float, norms))

    bounded, free = Look(), Look()
    fit(supervised(), MaxNorm(0.7), bounded)
    fit(supervised(), free)
    assert bounded.largest == pytest.approx(0.7, rel=1e-5)
    assert free.largest > 0.8


def test_max_norm_waits_for_the_step_inside_an_accumulation_window():
    changed: list[bool] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = pl_module.model[0].weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            changed.append(not torch.equal(self.before, pl_module.model[0].weight))

    fit(supervised(), MaxNorm(0.7), Look(), accumulate_grad_batches=3, max_epochs=1)
    assert changed == [False, False, True] * 4


class Still(Plain):
    """Has a gradient of exactly zero, so that what it gets is the noise."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(200, 200))

    def training_step(self, batch, batch_idx):
        return 0.0 * self.net(torch.ones(1, 200)).sum()


class Gradients(Callback):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.net.weight.grad.clone())


def test_noise_has_the_papers_variance_and_is_new_every_step():
    grads = Gradients()
    fit(Still(), GradientNoise(eta=0.01), grads)
    for step, gradient in enumerate(grads.seen):
        assert gradient.var().item() == pytest.approx(0.01 / (1 + step) ** 0.55, rel=0.05)
    assert not torch.allclose(grads.seen[0] / grads.seen[0].std(), grads.seen[1] / grads.seen[1].std(), atol=0.1)


def test_noise_is_a_function_of_the_seed():
    def end(**kwargs):
        module = supervised()
        fit(module, GradientNoise(0.1, **kwargs))
        return weights(module)

    assert same(end(seed=1), end(seed=1))
    assert not same(end(seed=1), end(seed=2))


def test_sparse_gradients_are_refused():
    class Words(Plain):
        def __init__(self):
            super().__init__(nn.Embedding(10, 4, sparse=True))

        def training_step(self, batch, batch_idx):
            return self.net(torch.tensor([1])).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ValueError, match="gradient must be dense"):
        fit(Words(), GradientNoise())


@pytest.mark.parametrize("make", [lambda: MaxNorm(0.0), lambda: GradientNoise(-1.0), lambda: GradientNoise(gamma=-1.0)])
def test_bad_arguments_are_named(make):
    with pytest.raises(ValueError, match="must be"):
        make()
