"""The smaller callbacks under manual optimization with several optimizers, on compiled nets, and in a second fit."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from firstlight.callbacks import BatchMixing, GradientNoise, MaxNorm, PredictionSamples, ProgressBar, RunManifest
from firstlight.mixing import MixUp
from helpers import Plain, TwoOptimizers, Wrapped, classes_data, fit, loader, network, same, supervised, weights


def largest_norm(module: nn.Module) -> float:
    return max(
        float(layer.weight.detach().norm(dim=1).max())
        for layer in module.modules()
        if hasattr(layer, "weight") and layer.weight.ndim == 2
    )


class Largest(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(largest_norm(pl_module))


def test_max_norm_holds_for_every_optimizer_and_in_every_fit():
    bounded, free = Largest(), Largest()
    callback = MaxNorm(0.7)
    fit(TwoOptimizers(lr=0.5), callback, bounded)
    fit(TwoOptimizers(lr=0.5), callback, bounded)
    fit(TwoOptimizers(lr=0.5), free)
    assert max(free.seen) > 0.8
    assert max(bounded.seen) == pytest.approx(0.7, rel=1e-5)
    assert len(bounded.seen) == 48


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of parts that its compiler imports
@pytest.mark.parametrize(
    "make", [lambda: MaxNorm(0.7), lambda: GradientNoise(0.1), lambda: BatchMixing([MixUp(0.4)], 4)]
)
def test_a_net_compiled_in_place_trains_as_one_that_is_not(make):
    ends = []
    for compiled in (False, True):
        torch.manual_seed(1)
        module = Plain(Wrapped(network(0.0)))
        if compiled:
            module.net.compile(backend="eager")
        fit(module, make())
        ends.append(weights(module))
    torch.compiler.reset()
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value)


class Silent(Plain):
    """Manual optimization of two layers whose gradients are exactly zero: what they get is the noise."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100)))
        self.automatic_optimization = False
        self.noise: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        for optimizer, layer in zip(self.optimizers(), self.net, strict=True):
            optimizer.zero_grad()
            self.manual_backward(0.0 * layer(torch.ones(1, 100)).sum())
            optimizer.step()
            self.noise.append(layer.weight.grad.clone())

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.0) for layer in self.net]


def test_every_step_of_every_optimizer_has_noise_of_its_own():
    module = Silent()
    fit(module, GradientNoise(eta=0.3), max_epochs=1)
    assert len(module.noise) == 24
    for step, noise in enumerate(module.noise):
        assert noise.var().item() == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.1)
    units = [noise.flatten() / noise.norm() for noise in module.noise]
    assert max(abs(float(a @ b)) for a, b in itertools.combinations(units, 2)) < 0.06, "six standard errors"


class Zero(Plain):
    """The same under automatic optimization."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(100, 100))

    def training_step(self, batch, batch_idx):
        return 0.0 * self.net(torch.ones(1, 100)).sum()


class Gradients(Callback):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.net.weight.grad.clone())


def test_noise_comes_once_an_accumulated_step_and_before_clipping():
    grads = Gradients()
    fit(Zero(), GradientNoise(eta=0.3), grads, accumulate_grad_batches=3, max_epochs=1)
    stepped = grads.seen[2::3]
    for step, gradient in enumerate(stepped):
        assert gradient.var().item() == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.1)
    clipped = Gradients()
    fit(Zero(), GradientNoise(eta=0.3), clipped, gradient_clip_val=0.5, max_epochs=1)
    assert all(float(gradient.norm()) <= 0.5 for gradient in clipped.seen)


def test_noise_of_a_second_fit_is_that_of_the_first():
    callback, ends = GradientNoise(0.1, seed=4), []
    for _ in range(2):
        module = supervised()
        fit(module, callback)
        ends.append(weights(module))
    assert same(*ends)


class Rows(Plain):
    """Batches are mappings; it keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def training_step(self, batch, batch_idx):
        self.given.append(batch)
        return F.cross_entropy(self.net(batch["input"]), batch["target"])


def rows(**more: Any) -> DataLoader:
    return DataLoader([{"input": x, "target": y, **more} for x, y in classes_data()], batch_size=8)


def test_mappings_are_mixed_and_keep_their_other_entries():
    module = Rows()
    fit(module, BatchMixing([MixUp(0.8)], 4, p=1.0, seed=3), data=rows(weight=0.5), max_epochs=1)
    for batch in module.given:
        torch.testing.assert_close(batch["target"].sum(1), torch.ones(8))
        assert batch["weight"].tolist() == [0.5] * 8
    mixed, plain = torch.cat([b["input"] for b in module.given]), torch.stack([x for x, _ in classes_data()])
    assert not torch.equal(mixed, plain)
    # A convex combination of two samples of the batch with the shares that the target states.
    first = module.given[0]
    one_hot = F.one_hot(torch.arange(96) % 4, 4).float()[:8]
    best = min(
        float((share * plain[i] + (1 - share) * plain[j] - first["input"][i]).norm())
        for i in range(8)
        for j in range(8)
        if i != j and float((one_hot[i] - one_hot[j]).abs().sum()) > 0
        for share in [float(first["target"][i][int(one_hot[i].argmax())])]
    )
    assert best < 1e-5


def test_a_batch_of_another_form_is_named():
    with pytest.raises(TypeError, match=r"batch must be \(input, target\) tensors or a mapping"):
        fit(Plain(), BatchMixing([MixUp(0.8)], 4), data=DataLoader([(x, y, 1) for x, y in classes_data()], 8))


def test_mixing_is_the_same_in_a_second_fit_and_under_manual_optimization():
    ends = []
    callback = BatchMixing([MixUp(0.8)], 4, seed=3)
    for _ in range(2):
        module = TwoOptimizers()
        fit(module, callback)
        assert "on_after_batch_transfer" not in vars(module)
        ends.append(weights(module))
    plain = TwoOptimizers()
    fit(plain)
    assert same(*ends)
    assert not same(ends[0], weights(plain))


def test_the_manifest_goes_to_loggers_that_take_hyperparameters(tmp_path):
    fit(TwoOptimizers(), RunManifest(), logger=CSVLogger(tmp_path, "", ""), max_steps=2)
    logged = yaml.safe_load((tmp_path / "hparams.yaml").read_text())["manifest"]
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert logged["packages"]["torch"] == written["packages"]["torch"] == torch.__version__


def test_a_second_fit_has_a_manifest_of_its_own_and_a_smoke_test_has_none(tmp_path):
    callback = RunManifest()
    fit(Plain(), callback, default_root_dir=tmp_path, fast_dev_run=True)
    assert not list(tmp_path.glob("*.json"))
    for _ in range(2):
        fit(Plain(), callback, default_root_dir=tmp_path, max_steps=1)
    assert {path.name for path in tmp_path.glob("*.json")} == {"manifest.json", "manifest-2.json"}


class Answers(TwoOptimizers):
    def validation_step(self, batch, batch_idx):
        return {"output": self.net(batch[0]), "target": batch[1]}


@pytest.mark.filterwarnings("ignore:PredictionSamples stands aside")  # of the first module, which gives no answers
def test_predictions_of_a_second_fit_do_not_depend_on_the_first(tmp_path):
    callback, module = PredictionSamples(), Answers()
    val = loader(shuffle=False)
    fit(Plain(), callback, val=val, default_root_dir=tmp_path, max_epochs=1)
    assert callback._matrix is None
    fit(module, callback, val=val, default_root_dir=tmp_path, max_epochs=1)
    expected = torch.zeros(4, 4, dtype=torch.int64)
    with torch.no_grad():
        for x, y in val:
            for target, found in zip(y, module.net(x).argmax(1), strict=True):
                expected[target, found] += 1
    assert torch.equal(callback._matrix, expected)


def test_lines_of_progress_in_a_second_fit_with_two_optimizers(capsys):
    bar = ProgressBar(style="lines")
    for _ in range(2):
        fit(TwoOptimizers(lr=0.5), bar, enable_progress_bar=True)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[:2] for line in lines] == [["epoch 1/2", "step 24"], ["epoch 2/2", "step 48"]]
        assert all("lr 0.5000" in line for line in lines)
