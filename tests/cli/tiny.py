"""A project small enough to train in a fraction of a second."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from firstlight._require import require
from firstlight.cli import FirstlightCLI
from firstlight.modules import ObjectiveModule, SupervisedModule
from firstlight.sampling import ResumableSampler
from helpers import classes_data

DEFAULT = """
    run_name: tiny
    seed_everything: 1
    model:
      model: {class_path: torch.nn.Linear, init_args: {in_features: 8, out_features: 4}}
      loss: {class_path: firstlight.losses.CrossEntropyLoss, init_args: {label_smoothing: 0.1}}
      optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
    trainer:
      max_epochs: 2
      accelerator: cpu
      devices: 1
      log_every_n_steps: 2
      enable_model_summary: false
      num_sanity_val_steps: 0
    learning_rate: {schedule: {class_path: WarmupCosine, init_args: {warmup: 0.25}}}
    early_stopping: {monitor: val/loss, patience: 8}
    checkpoint: {monitor: val/loss}
    progress_bar: null
    run_manifest: null
"""


class TinyData(LightningDataModule):
    def __init__(
        self, batch_size: int = 8, num_samples: int = 32, api_key: str | None = None, resumable: bool = False
    ) -> None:
        super().__init__()
        require(batch_size >= 1, "batch_size", batch_size, "one or more")
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.api_key = api_key
        self.resumable = resumable

    def setup(self, stage: str) -> None:
        self.data = classes_data(self.num_samples)

    def train_dataloader(self) -> Any:
        sampler = ResumableSampler(self.data) if self.resumable else None  # one order for any number of processes
        return DataLoader(self.data, batch_size=self.batch_size, shuffle=sampler is None, sampler=sampler)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=self.batch_size)

    def test_dataloader(self) -> Any:
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        return self.val_dataloader()


class TwoTerms(ObjectiveModule):
    """A user's own module."""

    def __init__(self, width: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net = nn.Linear(width, 4)

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        output = self.net(batch[0])
        return {"task": nn.functional.cross_entropy(output, batch[1]), "size": output.square().mean()}


@dataclass
class Project:
    """A folder with a configuration, and its command line."""

    root: Path
    module: type[LightningModule] = SupervisedModule

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), errors="surrogateescape")
        return path

    def run(self, *words: str, args: Any = None, **kwargs: Any) -> FirstlightCLI:
        args = list(words) if args is None else args
        kwargs.setdefault("allowed_packages", ["modules"])  # of the tests
        return FirstlightCLI(self.module, TinyData, project_root=self.root, args=args, **kwargs)

    @property
    def runs(self) -> list[Path]:
        return sorted((self.root / "runs").glob("*/*"))

    def saved(self, run: Path | None = None) -> Any:
        return yaml.safe_load(((run or self.runs[-1]) / "config.yaml").read_text())


def main() -> None:
    cli = FirstlightCLI(SupervisedModule, TinyData, project_root=Path.cwd())
    if cli.subcommand in ("tune", "verify-resume"):
        return
    rank = cli.trainer.global_rank
    Path(f"rank-{rank}.txt").write_text(f"{cli.run_folder} {cli.trainer.default_root_dir}")


if __name__ == "__main__":
    main()
