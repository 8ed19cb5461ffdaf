"""GANModule: its steps are those of a plain loop, each part gets its own gradients only, and it learns digits."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from modules.generative_models import Batches, Kept, Perceptron, SaveAfter, SeedByBatch, digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader

from firstlight.callbacks import GradientClipping, GradientMonitor, LearningRateScheduler, OverfitOneBatch, WeightEMA
from firstlight.losses import AdversarialLoss, gradient_penalty, r1_penalty
from firstlight.modules import GANModule
from firstlight.schedules import Constant
from helpers import ResumableLoader, fit, same, trainer, weights


def tiny(**kwargs) -> GANModule:
    torch.manual_seed(0)
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    arguments = {"latent_dim": 3, "generator_optimizer": sgd, "discriminator_optimizer": sgd} | kwargs
    return GANModule(Perceptron(3, 16, [8]), Perceptron(8, 16, [1]), **arguments)


def by_hand(module: GANModule, batches, *, kind: str, steps: int, penalty: float, r1: float, every: int):
    """The same training in plain torch, without anything of the module but its two parts."""
    generator, critic, loss = module.generator, module.discriminator, AdversarialLoss(kind=kind)
    for_generator, for_critic = (
        torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9) for part in (generator, critic)
    )
    for number, (x, _) in enumerate([*batches, *batches]):  # two epochs, in another order each
        torch.manual_seed(1000 + number)
        fake = generator(torch.randn(len(x), 3)).detach()
        total = loss.discriminator(critic(x), critic(fake))
        if penalty:
            total = total + gradient_penalty(critic, x, fake, weight=penalty)
        if r1 and number % every == 0:
            total = total + every * r1_penalty(critic, x, gamma=r1)
        for_critic.zero_grad()
        total.backward()
        for_critic.step()
        if (number + 1) % steps == 0:
            for_generator.zero_grad()
            loss.generator(critic(generator(torch.randn(len(x), 3)))).backward()
            for_generator.step()


@pytest.mark.parametrize("kind", ["non_saturating", "hinge", "least_squares", "wasserstein"])
@pytest.mark.parametrize(("steps", "penalty", "r1", "every"), [(1, 0.0, 0.0, 16), (2, 0.5, 0.0, 16), (1, 0.0, 0.5, 3)])
def test_training_is_that_of_a_plain_loop(kind, steps, penalty, r1, every):
    module = tiny(
        loss=AdversarialLoss(kind=kind), discriminator_steps=steps, gradient_penalty=penalty, r1=r1, r1_every=every
    )
    twin = copy.deepcopy(module)
    run = fit(module, SeedByBatch(), data=ResumableLoader(), max_epochs=2)
    by_hand(twin, ResumableLoader(), kind=kind, steps=steps, penalty=penalty, r1=r1, every=every)
    assert run.global_step == 10 + 10 // steps
    for name, value in weights(twin).items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-5, atol=1e-6)


class WhoLearns(Callback):
    """Writes down which part requires and has gradients at each optimizer step."""

    def __init__(self) -> None:
        self.rows: list[tuple[bool, bool, bool]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert all(p.requires_grad for p in pl_module.parameters()), "put back"
        self.graphs = []
        handle = pl_module.generator.register_forward_hook(lambda *a: self.graphs.append(a[2].requires_grad))
        self.handle = handle

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        def need(part):
            return any(p.requires_grad for p in part.parameters())

        self.rows.append((optimizer is trainer.optimizers[0], need(pl_module.generator), need(pl_module.discriminator)))
        if optimizer is trainer.optimizers[0]:
            after = [p.grad.clone() for p in pl_module.discriminator.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(self.before, after, strict=True)), "its step left them alone"
        else:
            self.before = [p.grad.clone() for p in pl_module.discriminator.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.handle.remove()
        assert self.graphs == [False, True], "samples for the discriminator are drawn without a graph"


def test_each_part_gets_its_own_gradients_only():
    seen = WhoLearns()
    fit(tiny(), seen, data=ResumableLoader(), max_epochs=1)
    assert seen.rows == [(False, False, True), (True, True, False)] * 5


def test_gradients_are_required_again_after_an_error_and_frozen_layers_stay_frozen():
    module = tiny()
    module.discriminator[1].weight.requires_grad_(False)
    fit(module, data=ResumableLoader(), max_epochs=1)
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["discriminator.1.weight"]
    with pytest.raises(ValueError, match=r"the generator's output must be in the shape of the data, \(8, 5\)"):
        fit(module, data=Batches(torch.zeros(8, 5)), max_epochs=1)
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["discriminator.1.weight"]


def test_callbacks_see_both_optimizers():
    """Rates by schedule, norms of both parts together, every step clipped; and the average ends in the weights."""
    kept, average = Kept(), WeightEMA(0.5)
    monitor, clip = GradientMonitor(every_n_steps=1), GradientClipping(max_norm=1e-3)
    norms: list[list[float]] = []
    states: list[dict[str, torch.Tensor]] = []

    class Norms(Callback):
        def on_train_batch_start(self, *_):
            norms.append([])

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            norms[-1].append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))

        def on_train_batch_end(self, trainer, pl_module, *_):
            states.append(weights(pl_module))

    module = tiny()
    schedule = LearningRateScheduler(Constant(warmup=10))
    fit(module, monitor, Norms(), schedule, clip, average, kept, data=ResumableLoader(), max_epochs=1)
    for number, row in enumerate(kept.rows):
        for group in ("0/decay", "0/no_decay", "1/decay", "1/no_decay"):
            assert row[f"lr/{group}"] == pytest.approx(0.1 * (number + 1) / 10)
        assert row["grad/norm/total"] == pytest.approx(math.hypot(*norms[number]), rel=1e-5)
    assert all(len(pair) == 2 and min(pair) > 1e-3 for pair in norms), "before clipping"
    moved = torch.cat([(a - b).flatten() for a, b in zip(states[1].values(), states[0].values(), strict=True)])
    # Two parts, each moved by the momentum of two clipped steps at rates of 0.01 and 0.02.
    assert 0 < moved.norm() <= math.sqrt(2) * 0.02 * (1 + 0.9) * 1e-3 * 1.001
    expected = {name: value.clone() for name, value in states[0].items()}
    for state in states[1:]:
        expected = {name: 0.5 * value + 0.5 * state[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(module.state_dict()[name], value)


def test_mixed_precision_trains_both_parts_on_fresh_weights():
    """In bf16 the steps are those of float32 up to rounding, at a rate where the order of the two steps shows."""
    moves = []
    for precision in ("32-true", "bf16-mixed"):
        module = tiny(r1=0.1, r1_every=2, gradient_penalty=1.0)
        before = weights(module)
        fit(module, SeedByBatch(), data=ResumableLoader(), max_steps=2, precision=precision)
        after = weights(module)
        moves.append([(after[name] - before[name]).flatten() for name in before])
    for exact, rounded in zip(*moves, strict=True):
        assert torch.linalg.vector_norm(exact) > 0
        assert torch.linalg.vector_norm(exact - rounded) < 0.1 * torch.linalg.vector_norm(exact)


def test_what_the_trainer_cannot_do_under_manual_optimization_is_refused_by_lightning():
    for setting in ({"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}):
        with pytest.raises(MisconfigurationException, match="manual optimization"):
            fit(tiny(), data=ResumableLoader(), **setting)


def test_penalties_and_losses_are_logged():
    kept = Kept()
    fit(tiny(r1=2.0, r1_every=3, gradient_penalty=4.0), kept, data=ResumableLoader(), max_epochs=1)
    for row in kept.rows:
        assert {key for key in row if key.startswith("train/")} == {
            "train/loss/discriminator",
            "train/loss/generator",
            "train/penalty/gradient",
            "train/penalty/r1",
        }
    lazy = [row["train/penalty/r1"] for row in kept.rows]
    assert lazy[0] == lazy[1] == lazy[2] != lazy[3] == lazy[4], "taken at every third step"
    x = ResumableLoader().data.tensors[0]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    expected = r1_penalty(tiny().discriminator, x[order[:8]], gamma=2.0).detach()
    assert lazy[0] == pytest.approx(float(expected), rel=1e-5), "as if it were taken at every step"


def test_evaluation_is_repeatable_and_leaves_the_random_state():
    module, batch = tiny(loss=AdversarialLoss(kind="hinge")), torch.randn(12, 8)
    before = torch.random.get_rng_state()
    first, second = (trainer().test(module, Batches(batch), verbose=False)[0] for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == second
    with torch.no_grad():
        fake = module.discriminator(module(torch.randn(12, 3, generator=torch.Generator().manual_seed(0))))
        expected = torch.relu(1 - module.discriminator(batch)).mean() + torch.relu(1 + fake).mean()
    assert first["test/loss/discriminator"] == pytest.approx(float(expected), rel=1e-5)
    assert first["test/loss/generator"] == pytest.approx(-float(fake.mean()), rel=1e-5)


def test_resumed_equals_unbroken(tmp_path):
    def run(*callbacks, ckpt=None):
        module = tiny(discriminator_steps=2, r1=0.5, r1_every=3)
        fit(module, SeedByBatch(), *callbacks, data=ResumableLoader(), max_epochs=3, ckpt=ckpt)
        return weights(module)

    unbroken = run(SaveAfter(tmp_path / "a.ckpt", 7))
    assert same(unbroken, run(ckpt=tmp_path / "a.ckpt"))


GENERATOR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 8}}
DISCRIMINATOR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 1}}


def test_a_checkpoint_is_plain_and_brings_the_same_module_back(tmp_path):
    module = GANModule(
        GENERATOR,
        DISCRIMINATOR,
        latent_dim=3,
        loss=AdversarialLoss(kind="wasserstein"),
        discriminator_steps=5,
        gradient_penalty=10.0,
        generator_optimizer=functools.partial(torch.optim.RMSprop, lr=0.03),
    )
    fit(module, data=ResumableLoader(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = GANModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dict(loaded.hparams) == dict(module.hparams)
    assert same(weights(loaded), weights(module))
    assert (loaded.loss.kind, loaded.discriminator_steps, loaded.gradient_penalty) == ("wasserstein", 5, 10.0)
    first, second = loaded.configure_optimizers()
    assert (type(first).__name__, first.defaults["lr"]) == ("RMSprop", 0.03)
    assert (type(second).__name__, second.defaults["lr"], second.defaults["betas"]) == ("Adam", 2e-4, (0.5, 0.999))


def test_samples_are_drawn_in_evaluation_mode():
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))
    module = GANModule(generator, nn.Linear(8, 1), latent_dim=3)
    before = weights(module)
    first, second = (module.sample(5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert generator[1].training
    assert same(before, weights(module)), "batch norm counted nothing"
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(first, generator.eval()(z).detach())
    (answer,) = trainer().predict(module, Batches((torch.zeros(6, 8), torch.zeros(6))))
    assert answer.shape == (6, 8)


def test_the_probe_stands_aside_with_a_reason():
    probe = OverfitOneBatch()
    fit(tiny(), probe, data=ResumableLoader(), max_steps=2)
    assert str(probe.result) == "OverfitOneBatch skipped: manual optimization: the step belongs to the module"


@pytest.mark.slow
def test_it_learns_digits_and_all_kinds_of_them():
    """Of 500 samples, a class counts as present if at least 10 (2 %) are assigned to it with probability above 0.8.

    The judge is a logistic regression of the real training digits, right on 96 % of the held-out ones, and that sure
    of 84 % of them.
    """
    (train, labels), (test, truth) = (digits(held_out).tensors for held_out in (False, True))
    judge = LogisticRegression(max_iter=2000).fit(train.flatten(1), labels)
    assert judge.score(test.flatten(1), truth) > 0.95
    torch.manual_seed(0)
    adam = functools.partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99))
    module = GANModule(
        Perceptron(16, 128, [1, 8, 8]),
        Perceptron(64, 128, [1], leak=0.2),
        latent_dim=16,
        r1=0.2,
        r1_every=4,
        generator_optimizer=adam,
        discriminator_optimizer=adam,
    )

    def present() -> int:
        samples = module.sample(500, generator=torch.Generator().manual_seed(0)).clamp(0, 1)
        probability = torch.from_numpy(judge.predict_proba(samples.flatten(1)))
        sure = probability[probability.amax(1) > 0.8].argmax(1)
        return int((torch.bincount(sure, minlength=10) >= 10).sum())

    assert present() == 0
    fit(module, WeightEMA(0.99), data=DataLoader(digits(), batch_size=64, shuffle=True), max_epochs=60)
    assert present() >= 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"latent_dim": 0}, ValueError, "latent_dim must be one or more"),
        ({"discriminator_steps": 0}, ValueError, "discriminator_steps must be one or more"),
        ({"r1": -1.0}, ValueError, "r1 must be zero or more"),
        ({"gradient_penalty": math.inf}, ValueError, "gradient_penalty must be zero or more, and finite"),
        ({"loss": nn.BCELoss()}, TypeError, "loss must be an AdversarialLoss or its spec"),
        ({"generator": "dcgan"}, TypeError, "generator must be an nn.Module or its spec"),
        ({"discriminator_optimizer": "adam"}, TypeError, "discriminator_optimizer must be a function"),
        ({"generator_optimizer": lambda _: 3}, TypeError, "generator_optimizer must be one that returns an Optimizer"),
        (
            {"r1": 1.0, "discriminator": nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))},
            ValueError,
            "critic must be without batch normalization",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"generator": nn.Linear(3, 8), "discriminator": nn.Linear(8, 1), "latent_dim": 3}
    with pytest.raises(error, match=message):
        fit(GANModule(**(arguments | change)), data=ResumableLoader(), max_steps=1)
