"""All state that is saved loads without unpickling objects, in a process that knows nothing of firstlight."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.tiny import DEFAULT, Project, TwoTerms
from contracts.test_roles import CASES
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from firstlight import modules
from firstlight.callbacks import ProgressBar
from firstlight.cli._slots import SLOTS
from firstlight.layers import GaussianNoise
from firstlight.losses import AdversarialLoss, CTCLoss, InfoNCELoss, LinearCrossEntropyLoss
from firstlight.modules import (
    ContrastiveModule,
    GANModule,
    LanguageModule,
    ObjectiveModule,
    SupervisedModule,
    TranscriptionModule,
    VAEModule,
)
from firstlight.recovery import GracefulStop, NonFiniteGuard, VerifiedCheckpointIO
from firstlight.schedules import Constant, WarmupCosine
from helpers import ResumableLoader, fit, loader, supervised

_LOAD = """
import json, sys, torch
found = {}
for name, path in json.load(sys.stdin).items():
    content = torch.load(path, weights_only=True)
    parts = content if isinstance(content, dict) else {}
    found[name] = [sorted(parts.get("callbacks", {})), sorted(parts.get("hyper_parameters", {}))]
assert not any(name.startswith("firstlight") or name.startswith("lightning") for name in sys.modules)
print(json.dumps(found))
"""


def linear(inputs: int, outputs: int) -> dict[str, Any]:
    return {"class_path": "torch.nn.Linear", "init_args": {"in_features": inputs, "out_features": outputs}}


def language() -> tuple[LightningModule, Any]:
    init_args = {"vocabulary": 12, "width": 16, "depth": 1, "heads": 2, "context": 24}
    model = {"class_path": "modules.language_models.CausalTransformer", "init_args": init_args}
    loss = LinearCrossEntropyLoss(label_smoothing=0.1, z_loss=1e-4)
    module = LanguageModule(model, linear(16, 12), loss, tie_to="embedding", context_length=24, alphabet="abcdefghijkl")
    return module, DataLoader(torch.arange(13).repeat(16, 1) % 12, batch_size=8)


def transcription() -> tuple[LightningModule, Any]:
    sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    frames, labels = torch.randn(16, 9, 6), torch.randint(1, 5, (16, 4))
    batches = [(frames, labels, torch.full((16,), 9), torch.full((16,), 4))] * 2
    return TranscriptionModule(linear(6, 5), CTCLoss(), optimizer=sgd), DataLoader(batches, batch_size=None)


# One row for each public module: it and the data that it is trained on. Each has a part with state or a schedule.
MODULES: dict[type[LightningModule], Callable[[], tuple[LightningModule, Any]]] = {
    ContrastiveModule: lambda: (
        ContrastiveModule(
            linear(8, 8), projection=linear(8, 4), loss=InfoNCELoss(learnable_temperature=True),
            augmentation=GaussianNoise(0.3),
        ),
        ResumableLoader(),
    ),
    GANModule: lambda: (
        GANModule(linear(3, 8), linear(8, 1), latent_dim=3, loss=AdversarialLoss(kind="hinge")),
        ResumableLoader(),
    ),
    LanguageModule: language,
    ObjectiveModule: lambda: (TwoTerms(loss_weights={"size": WarmupCosine(warmup=2)}), loader()),  # a user's subclass
    SupervisedModule: lambda: (supervised(), loader()),
    TranscriptionModule: transcription,
    VAEModule: lambda: (
        VAEModule(linear(8, 4), linear(2, 8), latent_dim=2, likelihood="laplace", learn_scale=True, beta=Constant(9)),
        ResumableLoader(),
    ),
}  # fmt: skip

# Each slot of the command line.
EVERY_SLOT = """
    run_manifest: {}
    exact_resume: {}
    weight_initialization: {seed: 5}
    overfit_one_batch: {on_fail: warn, max_steps: 20}
    batch_mixing: {num_classes: 4, mixings: [{class_path: firstlight.mixing.MixUp, init_args: {alpha: 0.4}}]}
    gradient_clipping: {percentile: 50.0}
    gradient_monitor: {}
    max_norm: {limit: 3.0}
    weight_ema: {decay: 0.9}
    prediction_samples: {}
    generated_samples: {}
    progress_bar: {}
    graceful_stop: {}
    wandb: {}
    rank_watch: {}
    preflight: {fail_on: never}
    non_finite_guard: {policy: rollback}
    health_monitor: {}
    gradient_noise: {eta: 0.01}
"""


class Infinite(SupervisedModule):
    """Its third loss is not finite, so that the guard keeps the batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx == 2 else loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(Generated|Prediction)Samples stands aside", "ignore:.*the step is left out")
@pytest.mark.filterwarnings("ignore:.*OverfitOneBatch")
def test_every_state_loads_in_a_fresh_process_with_weights_only(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    paths: dict[str, Path] = {}
    stateful: set[str] = set()
    for kind, case in CASES.items():
        path = paths[kind.__name__] = tmp_path / f"{kind.__name__}.ckpt"
        keeper = ModelCheckpoint(tmp_path / kind.__name__, save_last=True)
        settings = {"enable_checkpointing": True, "enable_progress_bar": kind is ProgressBar}
        callback = kind(**case)
        fit(supervised(), callback, keeper, val=loader(shuffle=False), **settings).save_checkpoint(path)
        if callback.state_dict():
            stateful.add(kind.__name__)
    path = paths["GracefulStop"] = tmp_path / "stop.ckpt"
    stop = GracefulStop(dirpath=str(tmp_path))
    fit(supervised(), stop, plugins=[VerifiedCheckpointIO()]).save_checkpoint(path)

    public = {getattr(modules, name) for name in modules.__all__}
    assert {kind for kind in public if issubclass(kind, LightningModule)} == set(MODULES)
    for kind, made in MODULES.items():
        path = paths[kind.__name__] = tmp_path / f"{kind.__name__}.ckpt"
        seed_everything(0, verbose=False)
        module, data = made()
        assert isinstance(module, kind)
        fit(module, data=data).save_checkpoint(path)

    guard = NonFiniteGuard()
    module = Infinite(supervised().model, supervised().loss)
    fit(module, guard, default_root_dir=tmp_path / "guard")
    paths["batch for replay"] = Path(guard.events[0]["saved"])

    project = Project(tmp_path / "project")
    project.write("configs/default.yaml", DEFAULT)
    project.write("every.yaml", EVERY_SLOT)
    cli = project.run("fit", "-c", "every.yaml")
    for logger in cli.trainer.loggers[1:]:
        logger.finish()
    saved = project.saved()
    assert not [name for name in SLOTS if saved[name] is None], "a slot that is off here"
    paths |= {f"command line: {path.name}": path for path in (project.runs[0] / "checkpoints").glob("*.ckpt")}

    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        input=json.dumps({name: str(path) for name, path in paths.items()}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found) == set(paths)
    for name in stateful | {"EarlyStopping"}:
        assert any(name in key for key in found[name][0]), f"{name}, with state in it"
    for kind in MODULES:
        assert found[kind.__name__][1], f"hyperparameters of {kind.__name__}"
    callbacks, hyperparameters = found["command line: last.ckpt"]
    assert "loss" in hyperparameters
    for name in stateful & {"EarlyStopping", "GradientClipping", "GradientMonitor", "WeightEMA", "NonFiniteGuard"}:
        assert any(name in key for key in callbacks), f"{name}, written by the command line"
