"""All state that is saved loads without unpickling objects, in a process that knows nothing of firstlight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli.tiny import DEFAULT, Project
from contracts.test_roles import CASES
from lightning.pytorch.callbacks import ModelCheckpoint

from firstlight.callbacks import ProgressBar
from firstlight.recovery import GracefulStop, VerifiedCheckpointIO
from helpers import fit, loader, supervised

_LOAD = """
import json, sys, torch
found = {}
for path in sys.argv[1:]:
    content = torch.load(path, weights_only=True)
    found[path] = sorted(content.get("callbacks", {})) + sorted(content.get("hyper_parameters", {}))
assert not any(name.startswith("firstlight") or name.startswith("lightning") for name in sys.modules)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(Generated|Prediction)Samples stands aside")
def test_every_state_loads_in_a_fresh_process_with_weights_only(tmp_path: Path, monkeypatch: Any) -> None:
    paths: dict[str, Path] = {}
    for kind, case in CASES.items():
        path = paths[kind.__name__] = tmp_path / f"{kind.__name__}.ckpt"
        keeper = ModelCheckpoint(tmp_path / kind.__name__, save_last=True)
        settings = {"enable_checkpointing": True, "enable_progress_bar": kind is ProgressBar}
        fit(supervised(), kind(**case), keeper, val=loader(shuffle=False), **settings).save_checkpoint(path)
    path = paths["GracefulStop"] = tmp_path / "stop.ckpt"
    stop = GracefulStop(dirpath=str(tmp_path))
    fit(supervised(), stop, plugins=[VerifiedCheckpointIO()]).save_checkpoint(path)
    project = Project(tmp_path / "project")
    project.write("configs/default.yaml", DEFAULT)
    project.run("fit", "--run_manifest={}", "--weight_ema.decay=0.9")
    paths["command line"] = project.runs[0] / "checkpoints" / "last.ckpt"

    done = subprocess.run(
        [sys.executable, "-c", _LOAD, *map(str, paths.values())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == len(paths)
    assert any("EarlyStopping" in key for key in found[str(paths["EarlyStopping"])]), "with state in it"
    assert "loss" in found[str(paths["command line"])], "hyperparameters too"
