"""OverfitOneBatch on modules of every kind: what it can probe it probes, what not it says, and the run is the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from firstlight.callbacks import OverfitOneBatch
from firstlight.losses import GaussianKLLoss, InfoNCELoss, ReconstructionLoss
from firstlight.tracking import read_metrics
from helpers import Plain, Wrapped, classes_data, fit, loader, network, same, weights


def probe(module: Any, **kwargs: Any):
    callback = OverfitOneBatch(on_fail="warn")
    fit(module, callback, **({"max_steps": 1, "max_epochs": -1} | kwargs))
    return callback.result


def both(make: Any, **kwargs: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return the verdict, and what a run leaves without and with the probe."""
    left, result = [], None
    for callbacks in ([], [OverfitOneBatch(on_fail="warn")]):
        module = make()
        fit(module, *callbacks, **kwargs)
        left.append((module, weights(module)))
        result = callbacks[0].result if callbacks else None
    return result, left


class Curious(Plain):
    """Looks at its Trainer, speaks, and logs."""

    def training_step(self, batch, batch_idx):
        progress = self.current_epoch / self.trainer.max_epochs + self.global_step / self.trainer.num_training_batches
        self.print("step", self.trainer.global_step)
        self.log("train/progress", progress)
        if self.logger is not None:
            self.logger.log_metrics({"own": self.trainer.global_step})
        return super().training_step(batch, batch_idx) * (1 + 0.01 * progress)

    def configure_optimizers(self):
        total = self.trainer.estimated_stepping_batches
        assert total == 24
        return super().configure_optimizers()


def test_a_module_that_looks_at_its_trainer_is_probed(tmp_path, capsys):
    rows = []
    for callbacks in ([], [OverfitOneBatch()]):
        module, folder = Curious(network(0.0)), tmp_path / str(len(callbacks))
        logger = CSVLogger(folder, "", "", flush_logs_every_n_steps=1)
        fit(module, *callbacks, logger=logger, log_every_n_steps=1)
        rows.append((read_metrics(folder)["own"], capsys.readouterr().out.count("step ")))
    assert callbacks[0].result.passed, str(callbacks[0].result)
    assert rows[0] == rows[1], "the copy neither logs nor prints"


class Greedy(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * len(self.trainer.optimizers)


def test_a_module_that_needs_more_of_its_trainer_is_skipped_not_blamed():
    result = probe(Greedy())
    assert result.passed is None
    assert "does not run on a copy: AttributeError: self.trainer.optimizers belongs to the real run" in result.cause


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of parts that its compiler imports
def test_a_net_that_was_compiled_in_place_is_probed_on_a_copy_and_stays_compiled():
    graphs: list[int] = []

    def backend(graph, inputs):
        graphs.append(1)
        return graph

    def make():
        torch.manual_seed(1)
        module = Plain(Wrapped(network(0.0)))
        module.net.compile(backend=backend)
        return module

    result, ((_, alone), (module, probed)) = both(make)
    torch.compiler.reset()
    assert result.passed, str(result)
    assert same(alone, probed)
    assert module.net._compiled_call_impl is not None
    assert graphs


class Mapped(Plain):
    def training_step(self, batch):
        return F.cross_entropy(self.net(batch["x"]), batch["labels"]["class"])


def test_batches_of_any_form():
    rows = [{"x": x, "labels": {"class": y}} for x, y in classes_data()]
    result = probe(Mapped(), data=DataLoader(rows, batch_size=8))
    assert result.passed, str(result)
    assert result.floor == 0


class Pulls(Plain):
    def training_step(self, dataloader_iter):
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")  # Lightning warns of what is meant here
def test_a_step_that_takes_the_loader_is_left_alone():
    def make():
        torch.manual_seed(1)
        return Pulls(network(0.0))

    result, ((_, alone), (_, probed)) = both(make)
    assert result.passed is None
    assert "dataloader_iter" in result.cause
    assert same(alone, probed)


class Measured(Plain):
    """Metrics and a queue inside: what the trial feeds them must not be found there afterwards."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(network(0.0))
        self.accuracy = MulticlassAccuracy(num_classes=4)
        self.register_buffer("queue", torch.zeros(16))
        self.calls = 0

    def training_step(self, batch, batch_idx):
        output = self.net(batch[0])
        self.accuracy(output, batch[1])
        self.log("train/accuracy", self.accuracy, on_epoch=True)
        self.queue = self.queue.roll(1)
        self.queue[0] = output.detach().mean()
        self.calls += 1
        return F.cross_entropy(output, batch[1])


def test_metrics_queues_and_counters_are_what_they_were(tmp_path):
    values = []
    for callbacks in ([], [OverfitOneBatch()]):
        module = Measured()
        run = fit(module, *callbacks, max_epochs=1)
        values.append((float(run.callback_metrics["train/accuracy_epoch"]), module.queue.tolist(), module.calls))
    assert callbacks[0].result.passed
    assert values[0] == values[1]
    assert values[0][2] == 12


class ByLBFGS(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.net.parameters())


def test_lbfgs_is_left_alone():
    assert probe(ByLBFGS()).cause == "LBFGS evaluates its closure several times a step"


class Broken(Plain):
    """Its loss is what ``form`` makes of logits and labels."""

    def __init__(self, form: Any, net: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(net, **kwargs)
        self.form = form

    def training_step(self, batch, batch_idx):
        return self.form(self.net(batch[0]), batch[1])


@pytest.mark.filterwarnings("ignore:OverfitOneBatch FAILED")
@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (
            lambda: Broken(lambda x, y: F.binary_cross_entropy_with_logits(x.sigmoid(), F.one_hot(y, 4).float())),
            "binary cross-entropy with logits gets probabilities, not logits",
        ),
        (lambda: Broken(F.nll_loss), "nll_loss gets no logarithms of probabilities and falls without end"),
        (
            lambda: Broken(lambda x, y: F.mse_loss(x, F.one_hot(y, 4).float()) + torch.log(0 * x.sum())),
            "the loss is not finite from the start",
        ),
        (
            lambda: Broken(
                lambda x, y: F.mse_loss(1e3 * x.exp().exp(), F.one_hot(y, 4).float()),
                nn.Sequential(nn.Linear(8, 4)),
                lr=1e9,
            ),
            "the loss becomes non-finite|the loss is not finite|the optimizer: SGD at learning rate 1e[+]09",
        ),
        (
            lambda: Broken(lambda x, y: F.cross_entropy(torch.zeros_like(x) * x, y)),
            "no gradient reaches",
        ),
    ],
    ids=["sigmoid twice", "nll of logits", "nan at once", "explodes", "zero times"],
)
def test_more_causes_by_name(make, cause):
    result = probe(make())
    assert result.passed is False, str(result)
    assert re.search(cause, result.cause), result.cause


def test_nll_of_log_probabilities_passes():
    result = probe(Broken(lambda x, y: F.nll_loss(x.log_softmax(1), y)))
    assert result.passed, str(result)
    assert result.floor == 0


class Autoencoder(Plain):
    """Reconstruction and divergence trade off: each has a floor, and their sum has none that is known."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), lr=0.02)
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8))
        self.reconstruction, self.divergence = ReconstructionLoss(likelihood="gaussian"), GaussianKLLoss()

    def training_step(self, batch, batch_idx):
        mean, log_variance = self.net(batch[0]).chunk(2, dim=1)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.reconstruction(self.decoder(latent), batch[0]) + self.divergence(mean, log_variance)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def test_an_autoencoder_is_judged_by_its_fall():
    result = probe(Autoencoder())
    assert result.floor is None
    assert result.passed, str(result)


class Pairs(Plain):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3)), lr=0.5)
        self.loss = InfoNCELoss(temperature=0.2)

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), self.net(batch[0] + 0.1))


def test_embeddings_of_few_dimensions_are_judged_by_their_fall():
    result = probe(Pairs(), data=loader(batch_size=16))
    assert result.floor is None, "sixteen points do not spread evenly in three dimensions"
    assert result.passed, str(result)
