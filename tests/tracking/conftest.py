"""Real fits of a tiny module, away from the user's own W&B state."""

import os
import sys
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset


class Tiny(LightningModule):
    """Logs the keys that firstlight's modules log."""

    def __init__(self, fail_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("the training itself failed")
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        output = self.layer(batch[0])
        self.log("val/loss", torch.nn.functional.cross_entropy(output, batch[1]))
        return {"output": output, "target": batch[1]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 4, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (24,), generator=generator)), batch_size=4)


@pytest.fixture
def fit(tmp_path):
    """Run a fit of 6 steps an epoch and return its Trainer."""

    def run(logger, *callbacks, module=None, epochs=1, **options):
        options = {"enable_checkpointing": False, "accelerator": "cpu", "log_every_n_steps": 2, **options}
        trainer = Trainer(
            logger=logger,
            callbacks=list(callbacks),
            max_epochs=epochs,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # torch on Lightning
            trainer.fit(module or Tiny(), loader(), loader())
        return trainer

    return run


@pytest.fixture(autouse=True)
def no_wandb_account(monkeypatch, tmp_path_factory):
    """Keep keys and settings of whoever runs the tests out, and see that a test leaves nothing behind."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    yield home
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    left_open, still_there = wandb.run, {"WANDB_SERVICE", "WANDB_DATA_DIR"} & set(os.environ)
    wandb.teardown()
    assert left_open is None
    assert still_there == set()
