"""VAEModule: its bound is the likelihood where the posterior is exact, and beats PCA on digits."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from modules.generative_models import Batches, Kept, Pair, Perceptron, SaveAfter, SeedByBatch, digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError

from firstlight.callbacks import LearningRateScheduler, OverfitOneBatch
from firstlight.modules import VAEModule
from firstlight.schedules import Constant, WarmupCosine
from helpers import ResumableLoader, fit, same, trainer, weights


def ppca(latent_dim: int) -> tuple[Tensor, Tensor, float]:
    """Return mean, weight and noise of the maximum-likelihood probabilistic PCA of the training digits.

    Tipping and Bishop 1999: x = W z + mean + noise, W the leading eigenvectors scaled by sqrt(eigenvalue - variance),
    the variance of the noise the mean of the other eigenvalues.
    """
    x = digits().tensors[0].flatten(1).double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    values, vectors = values.flip(0), vectors.flip(1)
    variance = float(values[latent_dim:].mean())
    return mean, vectors[:, :latent_dim] * (values[:latent_dim] - variance).sqrt(), math.sqrt(variance)


def log_likelihood(x: Tensor, mean: Tensor, weight: Tensor, std: float) -> Tensor:
    """Return log N(x; mean, W W^T + std^2 I) of each row."""
    covariance = weight @ weight.T + std**2 * torch.eye(len(mean), dtype=mean.dtype)
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x.flatten(1).double())


class ExactPosterior(nn.Module):
    """The posterior of probabilistic PCA; it is diagonal, since the columns of W are orthogonal."""

    def __init__(self, mean: Tensor, weight: Tensor, std: float) -> None:
        super().__init__()
        self.mean, self.weight, self.std = mean, weight, std

    def forward(self, x):
        precision = (self.weight.square().sum(0) / self.std**2) + 1
        mean = (x.flatten(1) - self.mean) @ self.weight / self.std**2 / precision
        return mean, (-precision.log()).expand_as(mean)


class LinearDecoder(nn.Module):
    def __init__(self, mean: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.mean, self.weight = mean, weight

    def forward(self, z):
        return (z @ self.weight.T + self.mean).view(-1, 1, 8, 8)


def test_with_the_exact_posterior_the_bound_is_the_likelihood():
    """The gap between bound and likelihood is KL(q || posterior), which is 0 here: all constants must be right.

    One draw of z scatters by a few nats, the mean of 30 for each of 360 digits by less than 0.05.
    """
    mean, weight, std = ppca(4)
    expected = log_likelihood(digits(held_out=True).tensors[0], mean, weight, std).mean()
    parts = mean.float(), weight.float()
    module = VAEModule(
        ExactPosterior(*parts, std), LinearDecoder(*parts), latent_dim=4, likelihood="gaussian", scale=std
    )
    batches = DataLoader(TensorDataset(digits(held_out=True).tensors[0].repeat(30, 1, 1, 1)), batch_size=360)
    (logged,) = trainer().validate(module, batches, verbose=False)
    assert logged["val/elbo"] == pytest.approx(float(expected), abs=0.1)
    assert logged["val/loss"] == pytest.approx(-logged["val/elbo"], rel=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "distribution"),
    [
        ("bernoulli", lambda output, _: torch.distributions.Bernoulli(logits=output)),
        ("gaussian", torch.distributions.Normal),
        ("laplace", torch.distributions.Laplace),
    ],
)
def test_the_reconstruction_is_the_log_probability_of_torchs_distribution(likelihood, distribution):
    scale = 1.0 if likelihood == "bernoulli" else 0.3
    module = VAEModule(nn.Linear(8, 4), nn.Linear(2, 8), latent_dim=2, likelihood=likelihood, scale=scale)
    x = torch.rand(16, 8).round()
    torch.manual_seed(5)
    terms = module.loss_terms(x)
    torch.manual_seed(5)
    mean, log_variance = module.encoder(x).chunk(2, dim=1)
    output = module.decoder(mean + (log_variance / 2).exp() * torch.randn(16, 2))
    expected = -distribution(output, scale).log_prob(x).sum(1).mean()
    torch.testing.assert_close(terms["reconstruction"], expected)
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(terms["kl"], kl)


def learner(**kwargs) -> VAEModule:
    torch.manual_seed(0)
    arguments = {"latent_dim": 4, "likelihood": "gaussian", "scale": 0.1, "learn_scale": True}
    arguments["optimizer"] = functools.partial(torch.optim.Adam, lr=3e-3)
    return VAEModule(Perceptron(64, 128, [8]), Perceptron(4, 128, [1, 8, 8]), **(arguments | kwargs))


@pytest.mark.slow
def test_it_beats_pca_of_the_same_latent_size_on_held_out_digits():
    """The exact log-likelihood of probabilistic PCA against the bound of the VAE, both of 360 held-out digits, in nats.

    Both have 4 latent dimensions and Gaussian noise of one standard deviation for all pixels, fitted by maximum
    likelihood on the same 1437 digits. The VAE's likelihood is at least its bound, so the comparison favors PCA.
    """
    rival = float(log_likelihood(digits(held_out=True).tensors[0], *ppca(4)).mean())
    module = learner()
    train = DataLoader(digits(), batch_size=64, shuffle=True)
    fit(module, LearningRateScheduler(WarmupCosine(0.05)), data=train, max_epochs=40)
    (logged,) = trainer().test(module, DataLoader(digits(held_out=True), batch_size=360), verbose=False)
    assert logged["test/elbo"] > rival + 5, f"bound {logged['test/elbo']:.2f}, PCA {rival:.2f}"


def test_evaluation_is_repeatable_and_leaves_the_random_state():
    module = learner(metrics={"mse": MeanSquaredError()})
    images = digits(held_out=True).tensors[0]
    data = Batches(images[:100], images[100:200])
    before = torch.random.get_rng_state()
    first, second = (trainer().test(module, data, verbose=False) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.random.get_rng_state())
    batch = images[:200]
    assert module.loss_terms(batch)["reconstruction"] != module.loss_terms(batch)["reconstruction"], "training draws"
    # Not at the mean: the reconstruction of a sample is worse.
    with torch.no_grad():
        at_mean = float((module(batch) - batch).square().mean())
    assert first[0]["test/mse"] > 1.01 * at_mean


def annealed(**kwargs) -> VAEModule:
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.Adam, lr=1e-2)
    arguments = {"latent_dim": 2, "likelihood": "gaussian", "optimizer": optimizer, "beta": Constant(warmup="1ep")}
    return VAEModule(nn.Linear(8, 4), nn.Linear(2, 8), **(arguments | kwargs))


def test_the_divergence_weighs_as_its_schedule_says_after_a_resume_too(tmp_path):
    """Five steps an epoch: a warm-up of one epoch has the weights 1/5, 2/5, ..., 1, 1, times the weight of 4."""
    kwargs = {"loss_weights": {"kl": 4.0}, "free_bits": 0.1}
    first, second, path = Kept(), Kept(), tmp_path / "a.ckpt"
    fit(annealed(**kwargs), first, SaveAfter(path, 3), data=ResumableLoader(), max_epochs=2)
    fit(annealed(**kwargs), second, data=ResumableLoader(), max_epochs=2, ckpt=path)
    rows = first.rows + second.rows
    assert [len(first.rows), len(second.rows)] == [10, 7]
    for step, row in zip([*range(10), *range(3, 10)], rows, strict=True):
        expected = row["train/loss/reconstruction"] + 4 * min(1, (step + 1) / 5) * row["train/loss/kl"]
        assert row["train/loss"] == pytest.approx(expected, rel=1e-6)


def test_the_bound_knows_no_free_bits():
    module = annealed(free_bits=3.0).eval()
    with torch.no_grad():
        for layer in (module.encoder, module.decoder):
            layer.weight.zero_()
            layer.bias.zero_()
    data = TensorDataset(torch.zeros(6, 8))
    (logged,) = trainer().validate(module, DataLoader(data, batch_size=3), verbose=False)
    assert logged["val/loss/kl"] == pytest.approx(6.0), "3 nats for each of 2 dimensions"
    assert logged["val/elbo"] == pytest.approx(-8 * 0.5 * math.log(2 * math.pi)), "q is the prior: only the constants"


def test_resumed_equals_unbroken(tmp_path):
    unbroken = annealed(learn_scale=True)
    fit(unbroken, SeedByBatch(), SaveAfter(tmp_path / "a.ckpt", 7), data=ResumableLoader(), max_epochs=3)
    resumed = annealed(learn_scale=True)
    fit(resumed, SeedByBatch(), data=ResumableLoader(), max_epochs=3, ckpt=tmp_path / "a.ckpt")
    assert same(weights(unbroken), weights(resumed))


LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 4}}
DECODER = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 8}}


def test_a_checkpoint_is_plain_and_brings_the_same_module_back(tmp_path):
    module = VAEModule(
        LINEAR, DECODER, latent_dim=2, likelihood="laplace", scale=0.5, learn_scale=True, beta=Constant(warmup=9)
    )
    fit(module, data=ResumableLoader(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = VAEModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dict(loaded.hparams) == dict(module.hparams)
    assert same(weights(loaded), weights(module))
    assert loaded.beta == Constant(warmup=9)
    assert loaded.reconstruction.likelihood == "laplace"
    assert loaded.log_scale != math.log(0.5), "it was trained"


def test_samples_come_from_the_decoder_in_evaluation_mode():
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    module = VAEModule(nn.Linear(8, 4), decoder, latent_dim=2)
    decoder[2].eval()
    before = weights(module)
    first, second = (module.sample(5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    decoder.eval()
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.sigmoid(decoder(z)).detach())
    assert not first.requires_grad
    assert same(before, weights(module)), "batch norm counted nothing"
    module.train()
    decoder[2].eval()
    module.sample(1)
    assert [decoder.training, decoder[1].training, decoder[2].training] == [True, True, False]


def test_prediction_and_an_encoder_that_returns_a_pair():
    module = VAEModule(Pair(8, 2), nn.Linear(2, 8), latent_dim=2, likelihood="gaussian")
    x = torch.randn(6, 8)
    for batch in (x, (x, torch.arange(6)), {"input": x}):
        (answer,) = trainer().predict(module, Batches(batch))
        with torch.no_grad():
            assert torch.equal(answer["mean"], module.encoder.mean(x))
            assert torch.equal(answer["reconstruction"], module.decoder(answer["mean"]))
        assert answer["log_variance"].shape == (6, 2)


@pytest.mark.parametrize("beta", [1.0, Constant(warmup=500), WarmupCosine(0.3)])
def test_the_probe_can_train_it(beta):
    probe = OverfitOneBatch(max_steps=60)
    fit(learner(beta=beta), probe, data=DataLoader(digits(), batch_size=32), max_steps=1)
    assert probe.result.passed is True
    assert probe.result.floor is None


def test_the_probe_weighs_the_terms_as_training_does():
    """With little weight the divergence grows, from 0 to 150 nats, by more than the reconstruction falls."""
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.Adam, lr=3e-3)
    net = Perceptron(64, 128, [32]), Perceptron(16, 128, [1, 8, 8])
    probe = OverfitOneBatch()
    fit(
        VAEModule(*net, latent_dim=16, beta=1e-3, optimizer=optimizer),
        probe,
        data=DataLoader(digits(), 32),
        max_steps=1,
    )
    assert probe.result.passed is True


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"latent_dim": 0}, ValueError, "latent_dim must be one or more"),
        ({"scale": 0.0}, ValueError, "scale must be above zero"),
        ({"likelihood": "bernoulli", "learn_scale": True}, ValueError, "scale must be left alone with 'bernoulli'"),
        ({"beta": -1.0}, ValueError, "beta must be zero or more"),
        ({"beta": "1"}, TypeError, "beta must be a number or a Schedule"),
        ({"encoder": 3}, TypeError, "encoder must be an nn.Module or its spec"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be 'bernoulli', 'gaussian' or 'laplace'"),
        ({"latent_dim": 3}, ValueError, r"the encoder's output must be of shape \(8, 6\); got \(8, 4\)"),
        ({"encoder": Pair(8, 5)}, ValueError, r"the encoder's mean must be of shape \(8, 2\); got \(8, 5\)"),
        ({"loss_weights": {"kld": 1.0}}, ValueError, "did you mean 'kl'"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"encoder": nn.Linear(8, 4), "decoder": nn.Linear(2, 8), "latent_dim": 2, "likelihood": "gaussian"}
    with pytest.raises(error, match=message):
        fit(VAEModule(**(arguments | change)), data=ResumableLoader(), max_steps=1)
