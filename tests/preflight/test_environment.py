"""What is asked of a run's surroundings, against what Lightning, torch and the disk do when the run comes to it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from preflight.setups import SETUPS, made
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from benchmark import CASES
from firstlight._rng import isolated_rng
from firstlight.checks import CHECKS, Evidence, Finding, Severity
from firstlight.cli._checkpoint_callback import RunCheckpoint
from firstlight.preflight import PreflightReport, run_preflight
from firstlight.preflight._outputs import _at_once, _saves, why_not
from firstlight.preflight._probe_environment import probe_environment
from firstlight.preflight._run import _pair_batch, report_of
from firstlight.preflight._subject import subject_of
from firstlight.preflight._worker_draws import _fetched, equal_draws
from firstlight.tracking import SafeWandbLogger
from helpers import Plain, fit, loader, network, trainer

ENVIRONMENT = [check for check in CHECKS if check.code.startswith("FL0")]
SAVES: dict[str, Any] = {"logger": False, "enable_checkpointing": True}


def asked(module: Any = None, data: Any = None, **kwargs: Any) -> PreflightReport:
    """Return what is said of the environment, and of nothing else."""
    module, evidence = module or Plain(), Evidence()
    with isolated_rng(0):
        subject = subject_of(module, data or (loader(), loader()), trainer(**kwargs))
        probe_environment(subject, _pair_batch(subject), evidence, lambda _, probe: probe())
    report = report_of(ENVIRONMENT, evidence, module=module, seconds=0.0, overhead=0.0)
    assert not report.crashed
    assert not any(reason.startswith("nothing measured") for reason in report.skipped.values())
    return report


def held_out() -> DataLoader:
    return loader(num_samples=8, shuffle=False)


def found(report: PreflightReport, code: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


# Folders


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Give up the rights of root, for whom no folder is closed."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder of somebody else's, which can be read and entered."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o555)
    yield place
    place.chmod(0o755)
    shutil.rmtree(place)


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    (tmp_path / "kept").write_text("kept")
    assert why_not(str(tmp_path / "not" / "yet")) == why_not(str(tmp_path)) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_file_or_a_lost_link_is_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("runs", "link"):
        with pytest.raises(OSError, match=name):  # what saving would meet
            (tmp_path / name / "a").mkdir(parents=True, exist_ok=True)
        assert why_not(str(tmp_path / name / "a")) == f"{tmp_path / name} is in the way, and no folder"


def test_a_folder_without_the_right_to_write(closed: Path):
    with as_nobody():
        with pytest.raises(PermissionError):
            (closed / "runs").mkdir()
        assert why_not(str(closed / "runs" / "a")) == f"{closed}: Permission denied"
    assert list(closed.iterdir()) == []


def test_every_output_is_asked_and_one_cause_is_told_once(tmp_path):
    (tmp_path / "runs").write_text("")
    save = ModelCheckpoint(dirpath=tmp_path / "runs" / "checkpoints")
    logger = CSVLogger(tmp_path / "runs")
    (barred,) = found(asked(logger=logger, callbacks=[save], enable_checkpointing=True), "FL001")
    assert barred.severity == Severity.ERROR
    assert (
        barred.message == f"CSVLogger, ModelCheckpoint cannot be written: {tmp_path}/runs is in the way, and no folder"
    )
    (barred,) = found(asked(**SAVES, default_root_dir=tmp_path / "runs"), "FL001")
    assert barred.where == str(tmp_path / "runs" / "checkpoints")
    report = asked(**SAVES, callbacks=[ModelCheckpoint(dirpath="memory://runs")])
    assert report.skipped["FL001"] == asked().skipped["FL001"] == "the Trainer writes no files here"


# Room


class Counting(TorchCheckpointIO):
    """Counts the files that lie there while one is written."""

    most = 0

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, Path(path).with_suffix(".new"), storage_options)
        self.most = max(self.most, len(list(Path(path).parent.iterdir())))
        Path(path).with_suffix(".new").rename(path)


class Falling(Plain):
    """Gets better every epoch, so that every epoch saves."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", float(-self.current_epoch))


@pytest.mark.parametrize("epochs", [1, 2, 4])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("top", [-1, 0, 1, 2])
def test_as_many_files_are_counted_as_ever_lie_there(tmp_path, top: int, last: bool, epochs: int):
    save = RunCheckpoint(dirpath=str(tmp_path / "saved"), monitor="val/loss", save_top_k=top, save_last=last)
    counting = Counting()
    run = fit(
        Falling(),
        save,
        data=loader(num_samples=8),
        val=held_out(),
        max_epochs=epochs,
        enable_checkpointing=True,
        plugins=[counting],
    )
    plan = subject_of(Plain(), loader(num_samples=8), run).plan
    assert _saves(save, plan) == epochs
    assert _at_once(save, epochs) == counting.most


def test_the_size_is_that_of_the_file(tmp_path):
    class Adam(Plain):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    net = nn.Sequential(nn.Linear(8, 512), nn.Linear(512, 256), nn.Linear(256, 4))
    parameters = 8 * 512 + 512 + 512 * 256 + 256 + 256 * 4 + 4
    tensors = 6
    report = asked(Adam(net), **SAVES)
    # the weights, both moments, and a step for each; and ModelCheckpoint's own worst score
    expected = 3 * 4 * parameters + 4 * tensors + 4
    assert report.readings["environment/checkpoint_bytes"] == expected
    fit(Adam(net), max_epochs=1).save_checkpoint(tmp_path / "whole.ckpt")
    assert (tmp_path / "whole.ckpt").stat().st_size == pytest.approx(expected, rel=0.01)
    (room,) = asked(Adam(net), **SAVES, callbacks=[ModelCheckpoint(save_weights_only=True)]).readings[
        "environment/room"
    ]
    assert room["size"] == 4 * parameters


@pytest.mark.parametrize("share", [0.4, 0.7, 1.5])
@pytest.mark.parametrize("stops", [False, True])
def test_what_does_not_fit_on_this_very_disk(tmp_path, share: float, stops: bool):
    size = asked(**SAVES).readings["environment/checkpoint_bytes"]
    epochs = int(share * shutil.disk_usage(tmp_path).free / size)
    callbacks = [ModelCheckpoint(tmp_path, save_top_k=-1), *([EarlyStopping("val/loss")] if stops else [])]
    report = asked(**SAVES, max_epochs=epochs, callbacks=callbacks)
    expected = {0.4: [], 0.7: [Severity.WARNING], 1.5: [Severity.WARNING if stops else Severity.ERROR]}[share]
    assert [finding.severity for finding in found(report, "FL002")] == expected


def test_a_run_without_an_end_is_not_counted():
    report = asked(**SAVES, max_epochs=-1, callbacks=[ModelCheckpoint(save_top_k=-1)])
    assert report.readings["environment/room"][0]["count"] == 1


# State


def anything(x: int) -> int:
    return x


HPARAMS: dict[str, Any] = {
    "path": Path("data"),
    "interval": timedelta(seconds=1),
    "number": np.float32(1.0),
    "net": nn.Linear(2, 2),
    "named function": anything,
    "nested": {"deep": [1, {"root": Path("data")}]},
    "plain": {"a": [1, 2.0, "x", None, True], "b": torch.ones(2), "c": (1, 2)},
}


class Keeps(Plain):
    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.parametrize("kind", HPARAMS)
@pytest.mark.filterwarnings("ignore:Attribute 'kept' is an instance of")
def test_hyperparameters_that_do_not_come_back(kind: str, tmp_path):
    """What a Trainer's own file says when it is saved and loaded is what was foretold."""
    module = Keeps(HPARAMS[kind])
    outcome = []
    run = fit(module, max_epochs=1)
    try:
        run.save_checkpoint(tmp_path / "a.ckpt")
        torch.load(tmp_path / "a.ckpt", weights_only=True)
    except Exception:
        outcome = [Severity.WARNING if (tmp_path / "a.ckpt").exists() else Severity.ERROR]
    lost = found(asked(module, **SAVES), "FL003")
    assert [finding.severity for finding in lost] == outcome
    assert bool(outcome) == (kind != "plain")
    if kind == "nested":
        assert lost[0].message.startswith("hyper_parameters.kept.deep.1.root (pathlib.PosixPath) cannot be loaded")


def test_states_of_callbacks_modules_and_data_are_asked_too():
    class Remembers(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"best": np.float64(1.0), "epoch": 3}

    class Adds(Plain):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["vocabulary"] = {"words": frozenset("ab"), "size": 2}

    class Data(LightningDataModule):
        def __init__(self, root: Any = Path("data")) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return loader()

        def state_dict(self) -> dict[str, Any]:
            return {"seen": {timedelta(1)}}

    report = asked(Adds(), Data(), **SAVES, callbacks=[Remembers()])
    lost = {(key, kind) for key, kind, _ in report.readings["environment/lost"]}
    assert {key.rpartition(".")[2] for key, _ in lost} == {"best", "words", "root", "seen"}
    assert ("vocabulary.words", "frozenset") in lost
    assert "numpy.float64" in {kind for _, kind in lost}


def test_what_cannot_be_saved_is_an_error(tmp_path):
    class Holds(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"lock": threading.Lock(), "number": 1}

    (lost,) = found(asked(**SAVES, callbacks=[Holds()]), "FL003")
    assert lost.severity == Severity.ERROR
    assert "lock (_thread.lock) cannot be saved" in lost.message
    with pytest.raises(TypeError, match="pickle"):
        fit(Plain(), Holds(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")


def test_where_nothing_is_saved_nothing_is_lost():
    report = asked(Keeps(Path("data")))
    assert report.skipped["FL003"] == report.skipped["FL002"] == "the Trainer saves no checkpoints"
    alone = run_preflight(Keeps(Path("data")), loader(), checks=ENVIRONMENT)
    assert [finding.code for finding in alone.findings] == ["FL003"]
    assert alone.skipped["FL001"] == alone.skipped["FL004"] == "no Trainer was given"


# Monitored keys


class Logs(Plain):
    """Logs in every place that there is."""

    def __init__(self, **sync: Any) -> None:
        super().__init__(network())
        self.sync, self.mean = sync, MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.mean.update(loss)
        self.log("val/loss", loss, **self.sync)
        self.log_dict({"val/mean": self.mean})

    def on_validation_epoch_end(self) -> None:
        self.log("val/end", 1.0)

    def on_train_epoch_end(self) -> None:
        self.log("train/end", 1.0)


KEYS = ("train/loss", "train/loss_step", "train/loss_epoch", "train/end", "val/loss", "val/mean", "val/end", "epoch")


@pytest.mark.parametrize("key", [*KEYS, "val/los", "val_loss", "train/loss_end"])
@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_a_key_is_missed_where_lightning_will_miss_it(kind: Any, key: str, tmp_path):
    def callback() -> Any:
        return kind(monitor=key, **({"dirpath": tmp_path} if kind is ModelCheckpoint else {}))

    missing = found(asked(Logs(), callbacks=[callback()], enable_checkpointing=kind is ModelCheckpoint), "FL004")
    if kind is EarlyStopping and key == "epoch":
        return  # it is ModelCheckpoint's own
    ends: Any = pytest.raises(Exception, match=r"monitored key|which is not available")
    with ends if missing else contextlib.nullcontext():
        fit(Logs(), callback(), val=held_out(), max_epochs=1, enable_checkpointing=kind is ModelCheckpoint)
    assert [finding.severity for finding in missing] == ([] if key in KEYS else [Severity.ERROR])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"callbacks": [EarlyStopping("val/los", strict=False)]},
        {"callbacks": [EarlyStopping("val/los")], "check_val_every_n_epoch": 5},
        {"callbacks": [ModelCheckpoint(monitor="val/los", every_n_epochs=5)], "enable_checkpointing": True},
    ],
)
def test_a_key_that_is_not_looked_for_at_once_is_a_warning(kwargs: dict[str, Any]):
    assert [finding.severity for finding in found(asked(Logs(), **kwargs), "FL004")] == [Severity.WARNING]


def test_where_others_may_log_a_key_nothing_is_said():
    class Scores(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("val/score", 1.0)

    watch = EarlyStopping("val/score")
    reason = asked(Logs(), callbacks=[watch, Scores()]).skipped["FL004"]
    assert reason == "val/score was not seen, but Scores may log it"
    assert asked(Logs(), loader(), callbacks=[watch]).skipped["FL004"].endswith("there is no validation data")
    assert not found(asked(Logs(), callbacks=[EarlyStopping("grad/norm/total")]), "FL004")
    assert asked(Logs()).skipped["FL004"] == "no callback watches a key"


def test_a_validation_that_raises_leaves_the_other_checks():
    class Raises(Keeps):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise LookupError("of the user's")

    report = asked(Raises(Path("data")), **SAVES, callbacks=[EarlyStopping("val/loss")])
    assert report.skipped["FL004"] == "val/loss was not seen, but validation raised LookupError: of the user's"
    assert [finding.code for finding in report.findings] == ["FL003"]


@pytest.mark.parametrize(
    ("key", "sync", "devices", "unsynced"),
    [
        ("val/loss", {}, 2, True),
        ("val/loss", {}, 1, False),
        ("val/loss", {"sync_dist": True}, 2, False),
        ("val/mean", {}, 2, False),
        ("train/loss_epoch", {}, 2, True),
    ],
)
def test_a_watched_number_of_one_of_two_processes(key: str, sync: dict[str, Any], devices: int, unsynced: bool):
    report = asked(
        Logs(**sync), callbacks=[EarlyStopping(key)], devices=devices, strategy="ddp" if devices > 1 else "auto"
    )
    assert [finding.where for finding in found(report, "FL005")] == ["EarlyStopping"] * unsynced


# Workers


class Noisy(Dataset):
    """Samples with noise of one source or another."""

    def __init__(self, source: str) -> None:
        self.source, self.own, self.started = source, np.random.default_rng(0), os.getpid()

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        if self.source == "none":
            assert os.getpid() == self.started, "no worker is started for samples that are always the same"
        draws = {"none": lambda: 0.0, "torch": lambda: float(torch.rand(())), "numpy": np.random.rand}
        return torch.tensor((draws | {"python": random.random, "own": self.own.random})[self.source]())


@pytest.mark.parametrize(("source", "among"), [("none", ""), ("torch", ""), ("numpy", ""), ("own", "two workers")])
def test_draws_of_real_workers(source: str, among: str):
    assert equal_draws(DataLoader(Noisy(source), num_workers=2), ranks=1) == (among, "")


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_processes_that_were_seeded_alike_draw_alike(source: str, monkeypatch):
    """The premise is measured too: what workers draw follows from the seed of the process, and nothing else."""
    noisy = DataLoader(Noisy(source), num_workers=1)
    streams = []
    for seed in (5, 5, 6):
        with isolated_rng(seed):
            streams.append(_fetched(noisy, 4, workers=1))
    assert streams[0] == streams[1] != streams[2]
    assert equal_draws(noisy, ranks=2) == ("", "")
    monkeypatch.setitem(os.environ, "PL_GLOBAL_SEED", "5")
    assert equal_draws(noisy, ranks=2) == ("all processes", "")
    monkeypatch.setitem(os.environ, "PL_SEED_WORKERS", "1")
    assert equal_draws(noisy, ranks=2) == ("", "")


def test_loaders_that_are_not_asked():
    assert "fewer than two workers" in equal_draws(DataLoader(Noisy("own"), num_workers=1), ranks=1)[1]
    assert "no plain DataLoader" in equal_draws([1, 2], ranks=1)[1]
    assert "spawn" in equal_draws(DataLoader(Noisy("own"), num_workers=2, multiprocessing_context="spawn"), ranks=1)[1]

    class Broken(Noisy):
        def __getitem__(self, index: int) -> Tensor:
            raise LookupError("of the user's")

    assert equal_draws(DataLoader(Broken("own"), num_workers=2), ranks=1)[1].endswith("LookupError: of the user's")


# Tracker


@pytest.fixture
def no_account(tmp_path, monkeypatch) -> Path:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("kind", "severity"), [(WandbLogger, Severity.WARNING), (SafeWandbLogger, Severity.INFO)])
def test_a_tracker_without_a_key(kind: Any, severity: Severity, no_account: Path, monkeypatch):
    def said() -> list[Finding]:
        return found(asked(logger=kind()), "FL007")

    (finding,) = said()
    assert (finding.severity, finding.where) == (severity, kind.__name__)
    assert found(asked(logger=kind(offline=True)), "FL007") == []
    for name, value in {"WANDB_MODE": "offline", "WANDB_API_KEY": "x" * 40}.items():
        with monkeypatch.context() as given:
            given.setenv(name, value)
            assert said() == []
    (no_account / ".netrc").write_text("machine api.wandb.ai login user password abc")
    assert said() == []
    assert not (no_account / "wandb").exists(), "no run was started"


# The whole


@pytest.mark.parametrize("name", SETUPS)
def test_of_a_sound_set_up_nothing_is_said(name: str):
    setup = made(name)
    report = asked(setup.module, setup.data, **(SAVES | {"logger": CSVLogger("logs"), "max_epochs": 3} | setup.trainer))
    assert report.findings == []
    assert {"FL001", "FL002", "FL003", "FL008"} <= {r.code for r in report.results if r.status == "passed"}


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.healthy], ids=lambda case: case.id)
def test_of_a_healthy_program_that_watches_its_metric_nothing_is_said(case: Any):
    module, data, settings = case.build()
    watch = [ModelCheckpoint(monitor=case.metric, save_last=True), EarlyStopping(case.metric)]
    callbacks = [*settings.pop("callbacks", []), *watch]
    report = asked(module, data, **{**settings, **SAVES, "logger": CSVLogger("logs"), "callbacks": callbacks})
    assert report.findings == []
    assert {"FL001", "FL002", "FL003", "FL004", "FL008"} <= {r.code for r in report.results if r.status == "passed"}


def test_what_is_installed_is_what_is_asked():
    assert asked().readings["environment/packages"]["lightning"] == __import__("lightning").__version__
