"""ContrastiveModule: views, representation and the linear probe, which is scikit-learn's and disturbs nothing."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from modules.generative_models import Batches, Convolutions, SaveAfter, SeedByBatch, Views, digits
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import LearningRateScheduler, OverfitOneBatch
from firstlight.layers import GaussianNoise
from firstlight.losses import InfoNCELoss, NTXentLoss, nt_xent_loss
from firstlight.modules import ContrastiveModule
from firstlight.modules._linear_probe import LinearProbe
from firstlight.schedules import WarmupCosine
from helpers import ResumableLoader, classes_data, fit, same, trainer, weights


def tiny(**kwargs) -> ContrastiveModule:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.2))
    optimizer = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    arguments = {"encoder": encoder, "projection": nn.Linear(6, 4), "loss": NTXentLoss(), "optimizer": optimizer}
    return ContrastiveModule(**(arguments | {"augmentation": GaussianNoise(0.3)} | kwargs))


def loaders(**kwargs) -> dict:
    data = classes_data(96)
    return {
        "data": DataLoader(data, batch_size=16, shuffle=True, **kwargs),
        "val": DataLoader(classes_data(40), batch_size=16),
    }


class Logged(Callback):
    """Keeps what each validation logged, and the random state after it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, trainer, pl_module):
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})


@pytest.mark.slow
def test_the_representation_of_digits_learned_without_labels():
    """A linear classifier of 32 features is right on 0.93 of 360 held-out digits, and far less so before training.

    The same classifier of the 64 pixels gets 0.93.
    """
    torch.manual_seed(0)
    module = ContrastiveModule(
        Convolutions(16, 32),
        nn.Sequential(nn.ReLU(), nn.Linear(32, 32)),
        NTXentLoss(temperature=0.5),
        augmentation=Views(),
        optimizer=functools.partial(torch.optim.AdamW, lr=5e-3),
    )
    train = DataLoader(digits(), batch_size=128, shuffle=True, drop_last=True)
    val = DataLoader(digits(held_out=True), batch_size=360)

    class Untrained(Logged):
        def on_train_start(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.eval()
                (x, y), (held_out, target) = digits().tensors, digits(held_out=True).tensors
                probe = LinearProbe.fit(pl_module(x), y)
                self.before = float((probe(pl_module(held_out)) == target).float().mean())
                pl_module.train()

    seen = Untrained()
    schedule = LearningRateScheduler(WarmupCosine(0.05))
    fit(module, seen, schedule, data=train, val=val, max_epochs=40, check_val_every_n_epoch=40)
    (row,) = seen.rows
    assert row["val/linear_probe"] >= 0.93
    assert row["val/linear_probe"] > seen.before + 0.05


def test_the_probe_is_a_ridge_classifier_of_standardized_features():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 7)) * [1e-3, 1, 10, 100, 1, 1, 0] + [5, 0, 0, 1, 0, 0, 3]
    features[:, 4] = features[:, 1] + 1e-3 * features[:, 5]  # all but the same
    target = generator.integers(0, 5, 200)
    features[:, 2] += 8 * target
    scaler = StandardScaler().fit(features)
    # scikit-learn's alpha is not divided by the number of samples
    oracle = RidgeClassifier(alpha=1e-3 * 200).fit(scaler.transform(features), target)
    probe = LinearProbe.fit(torch.tensor(features), torch.tensor(target))
    assert probe(torch.tensor(features)).tolist() == oracle.predict(scaler.transform(features)).tolist()
    # its targets are -1 and 1
    scores = oracle.decision_function(scaler.transform(features))
    ours = (torch.tensor(features) @ probe.weight + probe.bias) * 2 - 1
    np.testing.assert_allclose(ours.numpy(), scores, atol=1e-8)


def test_validation_logs_the_probe_of_the_training_data():
    module, seen = tiny(probe_samples=50), Logged()
    fit(module, seen, **loaders(), max_epochs=1)
    module.eval()
    train, val = classes_data(96), classes_data(40)
    chosen = [i * 96 // 50 for i in range(50)]
    with torch.no_grad():
        known, new = module(train.tensors[0][chosen]).numpy(), module(val.tensors[0]).numpy()
    scaler = StandardScaler().fit(known)
    oracle = RidgeClassifier(alpha=1e-3 * 50).fit(scaler.transform(known), train.tensors[1][chosen].numpy())
    expected = oracle.score(scaler.transform(new), val.tensors[1].numpy())
    assert seen.rows[0]["val/linear_probe"] == pytest.approx(expected, abs=1e-6)


def test_with_the_probe_training_is_the_same_to_the_bit():
    left = []
    for samples in (0, 64):
        module = tiny(probe_samples=samples)
        seen = Logged()
        fit(module, seen, **loaders(), max_epochs=3, num_sanity_val_steps=1)
        assert ("val/linear_probe" in seen.rows[-1]) == (samples > 0)
        left.append(weights(module) | {"torch": torch.random.get_rng_state()})
    assert same(*left)


class AnyLength(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(classes_data(32))


def test_no_probe_where_there_is_nothing_to_fit_it_on():
    unlabeled = DataLoader(TensorDataset(classes_data(32).tensors[0]), batch_size=8)
    seen = Logged()
    fit(tiny(), seen, data=unlabeled, val=unlabeled, max_epochs=1)
    trainer(callbacks=[seen]).validate(tiny(), loaders()["val"], verbose=False)
    assert [set(row) for row in seen.rows] == [
        {"train/loss", "train/loss/contrastive", "val/loss", "val/loss/contrastive"},
        {"val/loss", "val/loss/contrastive"},
    ]
    with pytest.warns(UserWarning, match="no val/linear_probe: the train loader is not a DataLoader") as told:
        fit(tiny(), data=DataLoader(AnyLength(), batch_size=8), val=loaders()["val"], max_epochs=2)
    assert len([w for w in told if "linear_probe" in str(w.message)]) == 1


@pytest.mark.parametrize("loss", [NTXentLoss(temperature=0.2), InfoNCELoss(learnable_temperature=True)])
def test_views_in_every_form_have_the_loss_of_their_embeddings(loss):
    module = tiny(augmentation=None, loss=loss).eval()
    first, second = torch.randn(2, 10, 8)
    label = torch.arange(10)
    expected = loss(module.projection(module.encoder(first)), module.projection(module.encoder(second)))
    forms = [
        (first, second),
        [first, second, label],
        {"view1": first, "view2": second},
        {"view1": first, "view2": second, "target": label},
    ]
    for batch in forms:
        torch.testing.assert_close(module.loss_terms(batch)["contrastive"], expected)
        assert torch.equal(module.predict_step(batch, 0), module.encoder(first))
    assert torch.equal(module.predict_step(first, 0), module.encoder(first))


def test_views_are_drawn_twice_from_the_augmentation():
    module = tiny(encoder=nn.Linear(8, 6))
    x = torch.randn(10, 8)
    for batch in (x, (x, torch.arange(10)), [x], {"input": x}):
        torch.manual_seed(4)
        term = module.loss_terms(batch)["contrastive"]
        torch.manual_seed(4)
        views = [module.projection(module.encoder(module.augmentation(x))) for _ in range(2)]
        torch.testing.assert_close(term, nt_xent_loss(*views))


def test_batch_norm_sees_both_views_together():
    module = tiny(encoder=nn.BatchNorm1d(8, momentum=None), projection=nn.Identity(), augmentation=None)
    first, second = torch.randn(10, 8), torch.randn(10, 8) + 1
    module.loss_terms((first, second))
    assert module.encoder.num_batches_tracked == 1
    torch.testing.assert_close(module.encoder.running_mean, torch.cat([first, second]).mean(0))


def test_evaluation_augments_repeatably_and_leaves_the_random_state():
    module, batch = tiny(), classes_data(16).tensors
    before = torch.random.get_rng_state()
    first, second = (trainer().test(module, Batches(batch), verbose=False)[0] for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == second
    torch.manual_seed(0)
    module.eval()
    views = [batch[0] + 0.3 * torch.randn_like(batch[0]) for _ in range(2)]
    expected = nt_xent_loss(*(module.projection(module.encoder(view)) for view in views)).detach()
    assert first["test/loss"] == pytest.approx(float(expected), rel=1e-5)
    module.loss_terms(batch)
    assert not module.augmentation.training, "its mode is that of the module"


def test_resumed_equals_unbroken(tmp_path):
    def run(*callbacks, ckpt=None):
        module = tiny(loss=InfoNCELoss(learnable_temperature=True))
        fit(module, SeedByBatch(), *callbacks, data=ResumableLoader(), max_epochs=3, ckpt=ckpt)
        return weights(module)

    unbroken = run(SaveAfter(tmp_path / "a.ckpt", 7))
    assert same(unbroken, run(ckpt=tmp_path / "a.ckpt"))
    assert not torch.equal(unbroken["loss.log_scale"], InfoNCELoss(learnable_temperature=True).log_scale), "it learns"


LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 8}}


def test_a_checkpoint_is_plain_and_brings_the_same_module_back(tmp_path):
    module = tiny(encoder=LINEAR, projection=LINEAR, loss=NTXentLoss(temperature=0.1, chunk_size=8), probe_samples=9)
    fit(module, **loaders(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = ContrastiveModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dict(loaded.hparams) == dict(module.hparams)
    assert same(weights(loaded), weights(module))
    assert (loaded.loss.temperature, loaded.augmentation.std, loaded.probe_samples) == (0.1, 0.3, 9)


def test_the_probe_of_the_set_up_asks_that_the_loss_falls():
    """Views change at every step: embeddings of 16 dimensions could reach the floor of NT-Xent, but not from these."""
    probe = OverfitOneBatch(max_steps=100)
    module = tiny(projection=nn.Linear(6, 16), loss=NTXentLoss(temperature=0.1))
    fit(module, probe, data=loaders()["data"], max_steps=1)
    assert probe.result.passed is True
    assert probe.result.floor is None


def test_the_probe_of_the_set_up_notices_an_encoder_that_learns_nothing():
    probe = OverfitOneBatch(on_fail="warn", max_steps=50)
    optimizer = functools.partial(torch.optim.SGD, lr=1e-9)
    with pytest.warns(UserWarning, match="OverfitOneBatch FAILED"):
        fit(tiny(optimizer=optimizer), probe, data=loaders()["data"], max_steps=1)


@pytest.mark.parametrize(
    ("change", "batch", "error", "message"),
    [
        ({"encoder": "resnet"}, None, TypeError, "encoder must be an nn.Module or its spec"),
        ({"augmentation": abs}, None, TypeError, "augmentation must be an nn.Module, its spec or None"),
        ({"probe_samples": -1}, None, ValueError, "probe_samples must be zero or more"),
        ({"augmentation": None}, torch.zeros(8, 8), TypeError, r"with augmentation=\.\.\. one input is enough"),
        (
            {"augmentation": None},
            (torch.zeros(8, 8), torch.arange(8)),
            ValueError,
            r"view2 must be of the shape of view1, \(8, 8\); got \(8,\)",
        ),
        ({}, {"image": torch.zeros(8, 8)}, TypeError, r"a mapping with 'input'; got \['image'\]"),
    ],
)
def test_bad_arguments_are_named(change, batch, error, message):
    with pytest.raises(error, match=message):
        fit(tiny(**change), data=Batches(batch), max_steps=1)
