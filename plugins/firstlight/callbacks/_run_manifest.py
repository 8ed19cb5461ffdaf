"""RunManifest: what a run was made from, beside its results."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from firstlight import __version__
from firstlight.tracking import redact, redact_argv, redact_diff


@final
class RunManifest(Callback):
    """Write ``manifest.json`` and, if the tree is dirty, ``git.diff`` into the run folder at the start of ``fit``.

    The run folder is ``trainer.log_dir`` or, without a logger, ``trainer.default_root_dir``. The manifest holds the
    command line, git revision and branch, packages with versions, Python, machine, devices, seed, Trainer settings, the
    hyperparameters of module and data, and the data's own fingerprint if the datamodule has a ``fingerprint()`` that
    returns plain values. Arguments and values whose name looks like a secret are masked, in the diff too.

    Role: observer.
    Reads: the process and the repository of the working directory. Writes: the two files, on rank 0. Logs: the manifest
    to every logger that takes hyperparameters, under ``manifest``.

    A part that cannot be read, or a folder that cannot be written, is named in one warning and never ends the run.
    """

    role: ClassVar[str] = "observer"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # on all ranks: log_dir is a broadcast
        if not getattr(trainer, "fast_dev_run", False):
            self._write(trainer, pl_module, Path(folder))

    @rank_zero_only
    def _write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        manifest = collect(trainer, pl_module)
        diff = _git("diff", "HEAD")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A resumed run keeps the record of how it began.
            earlier = len(list(folder.glob("manifest*.json")))
            name = f"manifest-{earlier + 1}.json" if earlier else "manifest.json"
            (folder / name).write_text(json.dumps(manifest, indent=2, default=str) + "\n", encoding="utf-8")
            if diff:
                (folder / "git.diff").write_text(redact_diff(diff) + "\n", encoding="utf-8")
        except OSError as error:
            rank_zero_warn(f"RunManifest could not write to {folder}: {error}")
        for logger in trainer.loggers:
            logger.log_hyperparams({"manifest": manifest})


def collect(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the manifest as plain values."""
    datamodule = getattr(trainer, "datamodule", None)
    return {
        "firstlight": __version__,
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *redact_argv(sys.argv[1:])],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "git": {"commit": _git("rev-parse", "HEAD"), "branch": _git("rev-parse", "--abbrev-ref", "HEAD")}
        | {"dirty": bool(_git("status", "--porcelain"))},
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "devices": {"accelerator": type(trainer.accelerator).__name__, "world_size": trainer.world_size}
        | {"strategy": type(trainer.strategy).__name__, "precision": str(trainer.precision)}
        | {"cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]},
        "trainer": {
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
        },
        "model": {"class": type(pl_module).__qualname__, "hparams": redact(_hparams(pl_module))}
        | {"parameters": sum(p.numel() for p in pl_module.parameters() if not _is_lazy(p))},
        "data": {"class": type(datamodule).__qualname__ if datamodule else None}
        | {"hparams": redact(_hparams(datamodule)), "fingerprint": _fingerprint(datamodule)},
        "packages": {d.metadata["Name"]: d.version for d in sorted(metadata.distributions(), key=lambda d: d.name)},
    }


def _hparams(owner: Any) -> dict[str, Any]:
    return dict(getattr(owner, "_hparams", {}))  # the property would write an attribute where there is none


def _fingerprint(datamodule: Any) -> Any:
    fingerprint = getattr(datamodule, "fingerprint", None)
    if not callable(fingerprint):
        return None
    try:
        return fingerprint()
    except Exception as error:  # the record must not end the run
        rank_zero_warn(f"RunManifest: the datamodule's fingerprint() failed: {error!r}")
        return None


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _is_lazy(parameter: torch.nn.Parameter) -> bool:
    return isinstance(parameter, torch.nn.parameter.UninitializedParameter)
