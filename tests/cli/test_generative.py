"""The generative modules from YAML alone, with model classes of the tests, and back from the run folder."""

from __future__ import annotations

import csv

import pytest
import torch
from cli.tiny import Project

from firstlight.modules import ContrastiveModule, GANModule, VAEModule
from firstlight.schedules import Constant

COMMON = """
    seed_everything: 1
    trainer:
      {max_epochs: 2, accelerator: cpu, devices: 1, log_every_n_steps: 2, enable_model_summary: false}
    learning_rate: {schedule: {class_path: WarmupCosine, init_args: {warmup: 0.25}}}
    early_stopping: null
    progress_bar: null
    run_manifest: null
"""
NET = "{class_path: modules.generative_models.Perceptron, init_args: {inputs: %d, hidden: 16, shape: [%d]}}"
MODELS = {
    ContrastiveModule: f"""
    run_name: contrastive
    checkpoint: {{monitor: val/linear_probe, mode: max}}
    model:
      encoder: {NET % (8, 6)}
      projection: {{class_path: torch.nn.Linear, init_args: {{in_features: 6, out_features: 4}}}}
      loss: {{class_path: firstlight.losses.NTXentLoss, init_args: {{temperature: 0.2}}}}
      augmentation: {{class_path: firstlight.layers.GaussianNoise, init_args: {{std: 0.2}}}}
      probe_samples: 16
      optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.1}}}}
    """,
    VAEModule: f"""
    run_name: vae
    checkpoint: {{monitor: val/elbo, mode: max}}
    model:
      encoder: {NET % (8, 4)}
      decoder: {NET % (2, 8)}
      latent_dim: 2
      likelihood: gaussian
      scale: 0.5
      learn_scale: true
      beta: {{class_path: firstlight.schedules.Constant, init_args: {{warmup: 1ep}}}}
      free_bits: 0.1
      optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 0.01}}}}
    """,
    GANModule: f"""
    run_name: gan
    checkpoint: {{monitor: null}}
    gradient_monitor: {{}}
    model:
      generator: {NET % (3, 8)}
      discriminator: {NET % (8, 1)}
      latent_dim: 3
      loss: {{class_path: firstlight.losses.AdversarialLoss, init_args: {{kind: hinge}}}}
      discriminator_steps: 2
      r1: 0.1
      r1_every: 2
      generator_optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 0.01}}}}
      discriminator_optimizer: {{class_path: torch.optim.RMSprop, init_args: {{lr: 0.02}}}}
    """,
}


@pytest.mark.parametrize(
    ("module", "keys"),
    [
        (ContrastiveModule, {"train/loss/contrastive", "val/loss", "val/linear_probe"}),
        (VAEModule, {"train/loss/kl", "train/elbo", "val/elbo"}),
        (GANModule, {"train/loss/generator", "train/penalty/r1", "val/loss/discriminator", "lr/1/decay"}),
    ],
)
def test_a_run_from_yaml_alone(tmp_path, module, keys):
    project = Project(tmp_path / "project", module)
    project.write("configs/default.yaml", COMMON + MODELS[module])
    cli = project.run("fit")
    (run,) = project.runs
    with (run / "metrics.csv").open() as file:
        assert set(next(csv.reader(file))) >= keys
    assert cli.trainer.fit_loop.total_batch_idx == 7
    (saved, *_) = (run / "checkpoints").glob("epoch*.ckpt")
    torch.load(saved, weights_only=True)
    loaded = module.load_from_checkpoint(saved)
    assert type(loaded) is module
    project.run("test")
    project.run("predict")
    assert list(run.rglob("predictions.*"))


def test_what_yaml_says_arrives(tmp_path):
    project = Project(tmp_path / "vae", VAEModule)
    project.write("configs/default.yaml", COMMON + MODELS[VAEModule])
    module = project.run("fit", "--trainer.fast_dev_run=true").model
    assert module.beta == Constant(warmup="1ep")
    assert (module.kl.free_bits, module.reconstruction.likelihood) == (0.1, "gaussian")
    project = Project(tmp_path / "gan", GANModule)
    project.write("configs/default.yaml", COMMON + MODELS[GANModule])
    trainer = project.run("fit", "--trainer.fast_dev_run=true").trainer
    assert trainer.lightning_module.loss.kind == "hinge"
    assert [type(optimizer).__name__ for optimizer in trainer.optimizers] == ["Adam", "RMSprop"]
