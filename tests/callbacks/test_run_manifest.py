"""RunManifest: what a run was made from, without its secrets."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from firstlight.callbacks import RunManifest
from helpers import Plain, fit, loader, supervised


def manifest(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_says_what_the_run_was_made_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/train.py", "fit", "--api_key=hunter2", "--lr", "0.1"])
    for command in (["init", "-q"], ["config", "user.email", "a@b.c"], ["config", "user.name", "a"]):
        subprocess.run(["git", *command], check=True)
    (tmp_path / "code.py").write_text("x = 1\n")
    subprocess.run(["git", "add", "code.py"], check=True)
    subprocess.run(["git", "commit", "-qm", "one"], check=True)
    (tmp_path / "code.py").write_text("x = 2\n")
    folder = tmp_path / "run"
    module = supervised()
    fit(module, RunManifest(), logger=CSVLogger(folder, "", ""), gradient_clip_val=0.5)
    found = manifest(folder)
    assert found["command"] == ["train.py", "fit", "--api_key=***", "--lr", "0.1"]
    assert found["git"]["dirty"] is True
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert found["git"]["commit"] == revision.stdout.strip()
    assert "+x = 2" in (folder / "git.diff").read_text()
    assert found["seed"] == "3"
    assert found["packages"]["torch"] == torch.__version__
    assert found["trainer"]["gradient_clip_val"] == 0.5
    assert found["model"]["parameters"] == sum(p.numel() for p in module.parameters())
    assert found["model"]["hparams"]["loss"]["init_args"]["label_smoothing"] == 0.1
    assert "hunter2" not in (folder / "manifest.json").read_text()


def test_without_a_logger_or_a_repository_it_writes_what_there_is(tmp_path):
    fit(Plain(), RunManifest(), default_root_dir=tmp_path, max_steps=1)
    found = manifest(tmp_path)
    assert found["git"] == {"commit": None, "branch": None, "dirty": False}
    assert not (tmp_path / "git.diff").exists()


def test_a_resumed_run_keeps_how_it_began(tmp_path):
    fit(Plain(), RunManifest(), default_root_dir=tmp_path, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    before = (tmp_path / "manifest.json").read_text()
    fit(Plain(), RunManifest(), default_root_dir=tmp_path, ckpt=tmp_path / "a.ckpt")
    assert (tmp_path / "manifest.json").read_text() == before
    assert (tmp_path / "manifest-2.json").exists()


def test_fingerprint_of_the_data_is_recorded_and_may_fail(tmp_path):
    class Data(LightningDataModule):
        def __init__(self, broken: bool):
            super().__init__()
            self.broken = broken

        def fingerprint(self):
            if self.broken:
                raise OSError("gone")
            return {"sha256": "abc"}

        def train_dataloader(self):
            return loader()

    settings = {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    for broken, expected in ((False, {"sha256": "abc"}), (True, None)):
        run = Trainer(callbacks=[RunManifest()], default_root_dir=tmp_path / str(broken), **settings)
        if broken:
            with pytest.warns(UserWarning, match=r"fingerprint\(\) failed: OSError\('gone'\)"):
                run.fit(Plain(), Data(broken))
        else:
            run.fit(Plain(), Data(broken))
        assert manifest(tmp_path / str(broken))["data"]["fingerprint"] == expected


def test_a_folder_that_cannot_be_written_is_named_and_does_not_end_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="RunManifest could not write to"):
        fit(Plain(), RunManifest(), default_root_dir=tmp_path / "file" / "run", max_steps=1)
