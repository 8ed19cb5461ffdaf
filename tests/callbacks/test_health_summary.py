"""The hooks behind FIRSTLIGHT=monitor, in this process: odd Trainers, odd ends, odd places to write to."""

from __future__ import annotations

import json
import math
import pickle
import sys
import time
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from firstlight import _autoload
from firstlight.callbacks import GradientClipping, GradientMonitor
from firstlight.callbacks._health_record import HealthRecord
from firstlight.callbacks._health_sample import Sample
from firstlight.callbacks._health_summary import HealthSummary
from firstlight.callbacks._health_summary_of_pytorch_lightning import HealthSummaryOfPytorchLightning
from firstlight.callbacks._health_text import to_text, what_stands_out
from firstlight.callbacks._preflight_of_environment import PreflightOfEnvironment
from firstlight.tracking import read_metrics
from helpers import CountReads, Plain, classes_data, fit, loader, same, supervised, trainer, weights

FILES = ("firstlight-health.json", "firstlight-health.txt")


def health(folder: Path) -> dict:
    return json.loads((folder / FILES[0]).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def watched(tmp_path, *callbacks, module=None, **kwargs) -> dict:
    fit(module or supervised(), HealthSummary(), *callbacks, default_root_dir=tmp_path, **kwargs)
    return health(tmp_path)


class Spoilt(Plain):
    """At some steps one gradient, or the loss and with it all of them, is not finite; the step is then left out."""

    def __init__(self, gradient_at: int | None = None, loss_at: int | None = None) -> None:
        super().__init__()
        self.gradient_at, self.loss_at = gradient_at, loss_at

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == self.loss_at else loss

    def on_after_backward(self):
        if self.global_step == self.gradient_at:
            self.net[0].bias.grad[2] = math.nan  # as it goes on backward
            self.net[1].weight.grad[3] = math.inf

    def on_before_optimizer_step(self, optimizer):
        if self.global_step in (self.gradient_at, self.loss_at):
            self.zero_grad()


# ---- what the environment says ---------------------------------------------------------------------------------------


@pytest.fixture
def environment():
    with pytest.MonkeyPatch.context() as patch:  # undone before the test is asked what it left behind
        yield patch


@pytest.mark.parametrize("asked", ["monitor", " Monitor ,", "monitor,monitor"])
def test_the_word_adds_the_callback_to_any_trainer(asked, environment):
    environment.setenv("FIRSTLIGHT", asked)
    assert [type(callback) for callback in _autoload.lightning()] == [HealthSummary]
    assert [type(callback) for callback in _autoload.pytorch_lightning()] == [HealthSummaryOfPytorchLightning]


def test_two_words_add_two_and_one_that_fails_leaves_the_other(environment):
    environment.setenv("FIRSTLIGHT", "preflight,monitor")
    assert [type(callback) for callback in _autoload.lightning()] == [HealthSummary, PreflightOfEnvironment]
    with pytest.warns(UserWarning, match="firstlight leaves out preflight: it takes what is made of lightning.pytorch"):
        assert [type(callback) for callback in _autoload.pytorch_lightning()] == [HealthSummaryOfPytorchLightning]
    environment.setitem(sys.modules, "firstlight.callbacks._health_summary", None)
    with pytest.warns(UserWarning, match="firstlight leaves out monitor: .*_health_summary"):
        assert [type(callback) for callback in _autoload.lightning()] == [PreflightOfEnvironment]


@pytest.mark.parametrize("asked", [None, "", ",", " , "])
def test_without_a_word_there_is_nothing(asked, environment, recwarn):
    environment.delenv("FIRSTLIGHT", raising=False)
    if asked is not None:
        environment.setenv("FIRSTLIGHT", asked)
    assert _autoload.lightning() == _autoload.pytorch_lightning() == []
    assert not recwarn.list


def test_an_unknown_word_is_told_once_beside_the_known_ones(environment):
    environment.setenv("FIRSTLIGHT", "moniter,monitor")
    with pytest.warns(UserWarning, match=r"FIRSTLIGHT='moniter' is not known; known: monitor") as told:
        assert len(_autoload.lightning()) == 1
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(_autoload.lightning()) == 1


def test_the_factory_raises_nothing_even_where_warnings_are_errors_and_imports_fail(environment):
    environment.setenv("FIRSTLIGHT", "monitor")
    environment.setitem(sys.modules, "firstlight.callbacks._health_summary", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _autoload.lightning() == []


def test_an_import_that_fails_is_told(environment):
    environment.setenv("FIRSTLIGHT", "monitor")
    environment.setitem(sys.modules, "firstlight.callbacks._health_summary_of_pytorch_lightning", None)
    with pytest.warns(UserWarning, match="firstlight leaves out monitor: .*_health_summary_of_pytorch_lightning"):
        assert _autoload.pytorch_lightning() == []


def test_the_factory_costs_less_than_a_millisecond_when_off(environment):
    environment.delenv("FIRSTLIGHT", raising=False)
    (entry,) = entry_points(group="lightning.pytorch.callbacks_factory", name="firstlight")
    times = []
    for _ in range(20):
        environment.delitem(sys.modules, "firstlight._autoload")
        start = time.perf_counter()
        assert entry.load()() == []
        times.append(time.perf_counter() - start)
    assert min(times) < 0.001, "the first Trainer, which reads the file"


# ---- what the summary says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["one gradient", "the loss"])
def test_the_first_step_that_is_not_finite_is_named(asked, tmp_path):
    module = Spoilt(gradient_at=7) if asked == "one gradient" else Spoilt(loss_at=13)
    report = watched(tmp_path, module=module)
    first = report["first_nonfinite"]
    assert report["optimizers"][0]["nonfinite_steps"] == 1
    (sentence,) = report["stands_out"]
    if asked == "one gradient":
        assert {k: first[k] for k in ("step", "epoch", "batch")} == {"step": 7, "epoch": 0, "batch": 7}
        assert (first["parameter"], first["nonfinite_gradients"], first["gradients"]) == ("net.1.weight", 2, 6)
        assert 0 < first["loss"] < 2
        assert "net.1.weight" in sentence
    else:
        assert {k: first[k] for k in ("step", "epoch", "batch")} == {"step": 13, "epoch": 1, "batch": 1}
        assert (first["nonfinite_gradients"], first["loss"]) == (6, "nan")
        assert "the loss of that step was nan" in sentence
        assert report["loss"]["best"] < report["loss"]["first"], "NaN is nobody's best"


def test_under_accumulation_the_loss_is_that_of_the_batch_that_broke(tmp_path):
    class Broken(Spoilt):
        def training_step(self, batch, batch_idx):
            loss = Plain.training_step(self, batch, batch_idx)
            return loss * math.inf if batch_idx == 6 else loss  # the first of three

        def on_before_optimizer_step(self, optimizer):
            if self.global_step == 2:
                self.zero_grad()

    report = watched(tmp_path, module=Broken(), max_epochs=1, accumulate_grad_batches=3, log_every_n_steps=2)
    assert {k: report["first_nonfinite"][k] for k in ("step", "batch", "loss")} == {
        "step": 2,
        "batch": 8,
        "loss": "inf",
    }
    assert report["run"]["steps"] == report["optimizers"][0]["steps"] == 4


def test_the_loss_is_the_one_of_training_step_whatever_lightning_divides_it_by(tmp_path):
    returned = []

    class Kept(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            returned.append(float(loss.detach()))
            return loss

    report = watched(tmp_path, module=Kept(), accumulate_grad_batches=4)
    assert report["loss"]["first"] == pytest.approx(returned[0], rel=1e-6)
    assert report["loss"]["best"] == pytest.approx(min(returned), rel=1e-6)
    assert report["loss"]["best_step"] == returned.index(min(returned)) // 4


def test_a_first_loss_that_is_nan_is_not_the_best(tmp_path):
    loss = watched(tmp_path, module=Spoilt(loss_at=0))["loss"]
    assert loss["first"] == "nan"
    assert 0 < loss["best"] <= loss["last"] < 2


@pytest.mark.parametrize("returned", ["nothing", "text"])
def test_a_manual_step_may_return_anything(returned, tmp_path):
    class Manual(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
            return None if returned == "nothing" else {"words": "text", "other": torch.ones(3)}

    report = watched(tmp_path, module=Manual())
    assert report["loss"] is None
    assert report["optimizers"][0]["steps"] == 24


def test_rates_that_are_tensors_are_seen_as_they_change(tmp_path):
    class Capturable(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=torch.tensor(0.5))
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    report = watched(tmp_path, module=Capturable(), max_epochs=1)
    assert report["optimizers"][0]["learning_rate"] == {"min": 0.5**12, "max": 0.5}


def test_a_resumed_run_counts_its_own_steps_and_keeps_no_state(tmp_path):
    run = fit(supervised(), HealthSummary(), default_root_dir=tmp_path, max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert not any("Health" in key for key in torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"])
    report = watched(tmp_path, max_epochs=3, ckpt=tmp_path / "a.ckpt")
    assert (report["run"]["first_step"], report["run"]["steps"]) == (12, 24)
    plain = fit(supervised(), max_epochs=3, ckpt=tmp_path / "a.ckpt")
    assert plain.global_step == 36


def test_waiting_for_data_is_measured_and_saving_is_no_waiting(tmp_path):
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            time.sleep(0.02)
            return classes_data()[index]

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            time.sleep(0.1)
            trainer.save_checkpoint(tmp_path / "a.ckpt")

    def waiting(*callbacks, data=None):
        return watched(tmp_path, *callbacks, module=Plain(), data=data, max_epochs=1)["run"]

    slow = waiting(data=DataLoader(Slow(), batch_size=2))
    assert slow["seconds"]["data"] >= 12 * 0.02
    assert slow["waiting_fraction"] == pytest.approx(
        slow["seconds"]["data"] / (slow["seconds"]["data"] + slow["seconds"]["step"])
    )
    saving = waiting(Save())
    assert saving["seconds"]["other"] >= 11 * 0.1
    assert saving["seconds"]["data"] < 0.5


@pytest.mark.parametrize("clipping", ["value", "own"])
def test_clipping_under_pytorch_lightning_is_measured(clipping, tmp_path):
    import pytorch_lightning as pl

    seen = []

    def norm(module):
        return math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in module.parameters()))

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 4)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def on_before_optimizer_step(self, optimizer):
            seen.append([norm(self)])

        def on_train_batch_end(self, *arguments):
            seen[-1].append(norm(self))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Own(Net):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            if self.global_step % 3 == 0:
                nn.utils.clip_grad_norm_(self.parameters(), 1e-3)

    settings = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings |= {"gradient_clip_val": 0.6, "gradient_clip_algorithm": "value"} if clipping == "value" else {}
    run = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        log_every_n_steps=4,
        default_root_dir=tmp_path,
        callbacks=[HealthSummaryOfPytorchLightning()],
        **settings,
    )
    run.fit(Net() if clipping == "value" else Own(), loader())
    rate = sum(after < before * (1 - 1e-6) for before, after in seen) / len(seen)
    assert 0 < rate < 1
    assert health(tmp_path)["optimizers"][0]["clip_rate"] == pytest.approx(rate)


# ---- what it leaves alone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}])
def test_training_is_bit_for_bit_the_same(settings, tmp_path):
    def left(*callbacks):
        module = supervised()
        fit(module, *callbacks, default_root_dir=tmp_path, val=loader(shuffle=False), gradient_clip_val=0.5, **settings)
        return weights(module) | {"random": torch.random.get_rng_state()}

    assert same(left(), left(HealthSummary()))


def test_values_are_read_where_lightning_logs_and_at_the_end(tmp_path, monkeypatch):
    read_at = []
    read = HealthRecord.read
    monkeypatch.setattr(HealthRecord, "read", lambda record: (read_at.append(record.batches), read(record)))

    def scalars(*callbacks):
        with CountReads() as counter:
            fit(supervised(), *callbacks, default_root_dir=tmp_path, max_epochs=-1, max_steps=60, log_every_n_steps=25)
        return counter.reads

    assert scalars(HealthSummary()) == scalars(GradientMonitor())
    assert read_at == [25, 50, 60]


def test_a_monitor_of_the_user_is_listened_to_and_logs_alone(tmp_path):
    def run(*callbacks, name):
        logger = CSVLogger(tmp_path / name, name="", version="")
        fit(supervised(), *callbacks, logger=logger, gradient_clip_val=0.5)
        return read_metrics(tmp_path / name)

    theirs = GradientMonitor(depth=1, every_n_steps=3)
    both = run(HealthSummary(), theirs, name="both")
    assert both == run(GradientMonitor(depth=1, every_n_steps=3), name="alone")
    assert theirs._listener is None
    alone = run(HealthSummary(), name="own")
    assert {"grad/norm/model.0", "grad/norm/total", "grad/clip_rate"} <= alone.keys()
    first, second = health(tmp_path / "both"), health(tmp_path / "own")
    assert first["optimizers"] == second["optimizers"]
    assert first["update_ratio"].keys() == {"model"}


def test_one_list_of_callbacks_for_two_trainers(tmp_path, environment, capfd):
    """Lightning adds to the caller's own list, so that the second Trainer has both."""
    environment.setenv("FIRSTLIGHT", "monitor")
    callbacks: list[Callback] = [GradientClipping(1.0)]
    for number in (1, 2):
        run = trainer(callbacks=callbacks, default_root_dir=tmp_path / str(number))
        run.fit(supervised(), loader())
        assert sum(isinstance(callback, HealthSummary) for callback in run.callbacks) == number
        assert health(tmp_path / str(number))["optimizers"][0]["steps"] == 24
        assert capfd.readouterr().err.count("firstlight: 24 steps") == 1


def test_barebones_and_fast_dev_run(tmp_path, capfd):
    Trainer(barebones=True, max_steps=3, callbacks=[HealthSummary()], default_root_dir=tmp_path).fit(Plain(), loader())
    assert "firstlight: " not in capfd.readouterr().err
    fit(supervised(), HealthSummary(), default_root_dir=tmp_path, fast_dev_run=2)
    assert "firstlight: 2 steps" in capfd.readouterr().err
    assert not list(tmp_path.rglob("firstlight-*"))


def test_it_can_be_sent_to_another_process():
    for callback in (HealthSummary(), HealthSummaryOfPytorchLightning()):
        assert type(pickle.loads(pickle.dumps(callback))) is type(callback)  # noqa: S301


# ---- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_breaks_is_summed_up(error, tmp_path):
    class Breaks(Plain):
        def training_step(self, batch, batch_idx):
            if self.global_step == 8:
                raise error("no more")
            return super().training_step(batch, batch_idx)

    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        watched(tmp_path, module=Breaks(), gradient_clip_val=1e9)
    report = health(tmp_path)
    assert report["run"]["ended"] == f"ended by {error.__name__}"
    assert report["optimizers"][0]["steps"] == 8
    assert report["optimizers"][0]["clip_rate"] == 0


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, capfd):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="firstlight could not write its summary to .*file/below") as told:
        fit(supervised(), HealthSummary(), default_root_dir=tmp_path / "file" / "below")
    assert len([w for w in told if "firstlight" in str(w.message)]) == 1
    assert "firstlight: 24 steps" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["__init__", "step", "batch", "read", "as_dict"])
def test_an_error_of_its_own_ends_the_watching_and_not_the_run(place, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("our own fault")

    alone = supervised()
    fit(alone)
    module = supervised()
    monkeypatch.setattr(HealthRecord, place, broken)
    with pytest.warns(UserWarning, match="firstlight stopped watching: RuntimeError.*our own fault"):
        fit(module, HealthSummary(), default_root_dir=tmp_path)
    assert same(weights(alone), weights(module))
    assert not list(tmp_path.rglob("firstlight-*"))


def test_its_warnings_are_no_errors_where_warnings_are(tmp_path):
    (tmp_path / "file").touch()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "firstlight")
        run = fit(supervised(), HealthSummary(), default_root_dir=tmp_path / "file" / "below")
    assert run.global_step == 24


# ---- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_quantiles_are_those_of_numpy(count):
    values = torch.randn(count).double().tolist()
    sample = Sample()
    for value in values:
        sample.add(value)
    for q in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert sample.quantile(q) == pytest.approx(np.quantile(values, q), rel=1e-12)


def report(**changes) -> dict:
    run = {"ended": "finished", "steps": 100, "batches": 100, "device": "cpu", "loss_scaling": False}
    run |= {"gradient_clip_val": None, "seconds": {"fit": 1.0}, "steps_per_second": 100.0, "waiting_fraction": 0.1}
    optimizer = {"name": "SGD", "steps": 100, "nonfinite_steps": 0, "clip_rate": 0.4}
    optimizer |= {"gradient_norm": {"median": 1.0, "p90": 2.0, "max": 3.0}, "learning_rate": {"min": 0.0, "max": 0.1}}
    base = {"run": run, "optimizers": [optimizer], "first_nonfinite": None, "loss": None}
    base["update_ratio"] = {"net": {"median": 0.01, "readings": 10}}
    for path, value in changes.items():
        part, _, key = path.partition("__")
        target = base[part][0] if part == "optimizers" else base[part]
        target[key] = value
    return base


FIRST = {"step": 3, "epoch": 0, "batch": 3, "loss": 0.5, "parameter": "net.weight"}
FIRST |= {"nonfinite_gradients": 2, "gradients": 6}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizers__clip_rate": 0.6, "run__gradient_clip_val": 0.5}, "Clipping at 0.5 shortened 60%"),
        ({"optimizers__clip_rate": 0.5}, None),
        ({"optimizers__learning_rate": {"min": 0.0, "max": 0.0}}, "learning rate of SGD was 0"),
        ({"update_ratio__net": {"median": 0.3, "readings": 5}}, "changes the weights of net by 30%"),
        ({"update_ratio__net": {"median": 0.3, "readings": 4}}, None),
        ({"update_ratio__net": {"median": 0.053, "readings": 50}}, None),  # a new head, healthy
        ({"run__waiting_fraction": 0.4}, "40% of the time"),
        ({"run__waiting_fraction": 0.4, "run__device": "cuda"}, None),
        ({}, None),
    ],
)
def test_what_stands_out_and_what_does_not(changes, words):
    said = what_stands_out(report(**changes))
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_a_scaler_that_looks_for_its_scale_is_healthy():
    searching = report(optimizers__nonfinite_steps=5, run__loss_scaling=True) | {"first_nonfinite": FIRST}
    assert what_stands_out(searching) == []
    without = report(optimizers__nonfinite_steps=5) | {"first_nonfinite": FIRST}
    assert "2 of 6 parameters, nearest to the loss net.weight, with a loss of 0.5" in what_stands_out(without)[0]


def test_the_text_stays_short_and_ascii_whatever_the_model():
    many = report(optimizers__clip_rate=0.9)
    many["optimizers"] *= 20
    many["update_ratio"] = {f"ünit.{n}": {"median": 0.5, "readings": 9} for n in range(500)}
    many["loss"] = {"first": math.nan, "last": math.inf, "best": math.nan, "best_step": 0}
    lines = to_text(many | {"stands_out": what_stands_out(many)})
    assert len(lines) <= 15
    assert all(line.isascii() for line in lines)


def test_names_of_parameters_that_the_module_does_not_have():
    record = HealthRecord(nn.Linear(1, 1).named_parameters)
    stray = nn.Parameter(torch.ones(1))
    bad = torch.tensor([math.nan])
    record.step(torch.optim.SGD([stray], 0.1), [stray], bad, bad[0])
    record.batch(None)
    record.read()
    assert record.first_nonfinite is not None
    assert (record.first_nonfinite["parameter"], record.first_nonfinite["loss"]) == ("other", None)
