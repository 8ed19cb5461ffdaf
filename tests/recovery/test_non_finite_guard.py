"""A step that is not finite leaves no trace: the run is the run without its batch, to the bit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from recovery.training import Everything, run
from torch.utils.data import DataLoader

from firstlight.callbacks import GradientClipping, WeightEMA
from firstlight.recovery import ExactResume, NonFiniteGuard
from helpers import classes_data, same

quiet = pytest.mark.filterwarnings("ignore:.*is not finite.*(left out|goes back)")


class Faulty(Everything):
    """No dropout and no global noise, so that a batch that is left out moves no random number."""

    fault, at = "loss", (2,)

    def __init__(self):
        super().__init__(schedule=False)
        self.net[3].p = 0.0

    def training_step(self, batch, batch_idx):
        x, y = batch
        bad = batch_idx in self.at and self.current_epoch == 0
        if bad and self.fault == "batch":
            x = x * math.nan
        if bad and self.fault == "activation":
            x = x * 1e38 * 1e38
        if bad and self.fault == "weights":
            with torch.no_grad():
                self.net[0].weight[0, 0] = math.nan
        logits = self.net(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        if bad and self.fault == "loss":
            loss = loss * math.inf
        if bad and self.fault == "detached loss":
            loss = loss + math.nan
        if bad and self.fault == "gradient":
            logits.register_hook(lambda gradient: gradient * math.nan)
        self.accuracy(logits, y)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss


class Sound(Faulty):
    at = ()


def faulty(fault, at=(2,)):
    return type("Now", (Faulty,), {"fault": fault, "at": at})


def batches(without=()):
    data = classes_data(48)
    return [data[8 * index : 8 * index + 8] for index in range(6) if index not in without]


def trained(folder, *callbacks, module, without=(), **kwargs):
    settings = {"max_epochs": 1} | kwargs
    return run(folder, *callbacks, data=DataLoader(batches(without), batch_size=None), module=module, **settings)


def without_random(left):
    return {key: value for key, value in left.items() if key not in ("torch", "numpy", "python")}


@quiet
@pytest.mark.parametrize("fault", ["loss", "detached loss", "gradient", "batch", "activation"])
def test_a_skipped_step_leaves_no_trace(fault, tmp_path):
    """Weights, moments, BatchNorm, metric, epoch mean, clip statistics: those of a run that never saw the batch."""
    clip = GradientClipping(percentile=50.0)
    guard = NonFiniteGuard()
    left, _, rows = trained(tmp_path / "guarded", guard, clip, module=faulty(fault))
    other = GradientClipping(percentile=50.0)
    expected, _, wanted = trained(tmp_path / "clean", other, module=Sound, without=(2,))
    assert guard.skipped_steps == 1
    assert same(without_random(left), without_random(expected))
    for key in ("train/loss", "train/accuracy"):
        assert [r[key] for r in rows if r.get(key)] == [r[key] for r in wanted if r.get(key)]
    norms, wanted_norms = (one.state_dict()["norms"][0] for one in (clip, other))
    assert norms.isfinite().sum() == 5
    assert torch.equal(norms.nan_to_num(), wanted_norms.nan_to_num())


@quiet
def test_an_average_takes_in_the_weights_as_they_stayed(tmp_path):
    """``average = 0.7 average + 0.3 weights`` over the six steps, one of which did not move them."""
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.net[0].weight.detach().clone())

    left, _, _ = trained(tmp_path, NonFiniteGuard(), WeightEMA(0.7), Watch(), module=faulty("batch"))
    assert torch.equal(seen[1], seen[2])
    average = seen[0]
    for weight in seen[1:]:
        average = 0.7 * average + 0.3 * weight
    torch.testing.assert_close(left["net.0.weight"], average)


@quiet
def test_a_bad_batch_takes_its_accumulation_window_along(tmp_path):
    guard = NonFiniteGuard()
    left, _, _ = trained(tmp_path / "guarded", guard, module=faulty("batch"), accumulate_grad_batches=2)
    expected, _, _ = trained(tmp_path / "clean", module=Sound, without=(2, 3), accumulate_grad_batches=2)
    assert guard.skipped_steps == 1
    assert same(without_random(left), without_random(expected))


def test_without_a_fault_it_is_not_there(tmp_path):
    for policy in ("skip", "rollback", "stop"):
        left, _, rows = trained(tmp_path / policy, NonFiniteGuard(policy), module=Sound)
        expected, _, wanted = trained(tmp_path / f"{policy}-alone", module=Sound)
        assert same(left, expected)
        assert rows == wanted


def test_it_says_where_and_keeps_the_batch(tmp_path):
    guard = NonFiniteGuard()
    with pytest.warns(UserWarning, match=r"batch 2: the loss is not finite \(first in net.0\).*the step is left out"):
        trained(tmp_path, guard, ExactResume(), module=faulty("activation"))
    (event,) = json.loads((tmp_path / "nonfinite.json").read_text())
    assert event == guard.events[0]
    assert (event["step"], event["batch"], event["samples"], event["where"]) == (2, 2, [2], "net.0")
    saved = torch.load(event["saved"], weights_only=True)
    assert saved["batch"][1].tolist() == batches()[2][1].tolist()


@pytest.mark.parametrize(("fault", "where"), [("batch", "the loss is not finite"), ("gradient", "the gradient is not")])
def test_stop_raises_with_the_state_as_it_was(fault, where, tmp_path):
    class Keep(Callback):
        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    with pytest.raises(FloatingPointError, match=f"step 2, epoch 0, batch 2: {where}"):
        trained(tmp_path / "stopped", NonFiniteGuard("stop"), Keep(), module=faulty(fault))
    expected, _, _ = trained(tmp_path / "two", module=Sound, without=(2, 3, 4, 5))
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    assert same(saved, {key: expected[key] for key in saved})


@quiet
def test_patience_ends_a_run_that_only_skips(tmp_path):
    guard = NonFiniteGuard(patience=3)
    with pytest.raises(FloatingPointError, match="the 3th bad step in a row"):
        trained(tmp_path, guard, module=faulty("loss", at=(1, 2, 3, 4)))
    assert guard.skipped_steps == 3


@quiet
def test_rollback_goes_back_and_lowers_the_rate(tmp_path):
    """After the bad step: state of the snapshot, at step 2, and half the rate for every later step."""
    rates, at_snapshot = [], {}

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx in (2, 4):
                at_snapshot[batch_idx] = {k: v.clone() for k, v in pl_module.state_dict().items()}
            if batch_idx == 0:
                trainer.optimizers[0].register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))

    guard = NonFiniteGuard("rollback", snapshot_every_n_steps=2)
    left, _, _ = trained(tmp_path, guard, Watch(), module=faulty("loss", at=(3,)))
    assert same(at_snapshot[2], at_snapshot[4])
    assert guard.rollbacks == 1
    assert rates == [0.01] * 4 + [0.005] * 2
    assert float(left["lr/0"]) == pytest.approx(0.01)  # the schedule's own is untouched
    assert guard.state_dict()["rate"] == 0.5


@quiet
def test_weights_that_are_not_finite_are_mended_or_end_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"weights are not finite \(net.0.weight\): resume from a good"):
        trained(tmp_path / "skip", NonFiniteGuard(), module=faulty("weights", at=(2,)))
    left, _, _ = trained(tmp_path / "back", NonFiniteGuard("rollback"), module=faulty("weights", at=(2,)))
    assert all(bool(torch.isfinite(value.float()).all()) for value in left.values())


@quiet
def test_a_snapshot_of_weights_that_are_not_finite_is_not_taken(tmp_path):
    """They turn so after the step, unseen: the snapshot that is due next would hold them."""

    class Spoil(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                with torch.no_grad():
                    pl_module.net[0].weight[0, 0] = math.nan

    left, _, _ = trained(tmp_path, NonFiniteGuard("rollback", snapshot_every_n_steps=1), Spoil(), module=Sound)
    assert all(bool(torch.isfinite(value.float()).all()) for value in left.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"policy": "ignore"}, "policy must be one of skip, rollback, stop"),
        ({"patience": 0}, "patience must be"),
        ({"snapshot_every_n_steps": 0}, "snapshot_every_n_steps must be"),
        ({"lr_factor": 0.0}, "lr_factor must be"),
    ],
)
def test_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        NonFiniteGuard(**arguments)


@pytest.mark.faults
def test_a_rank_that_sees_nan_first_is_named_and_all_skip(tmp_path):
    program = Path(__file__).with_name("nan_on_rank_one.py")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'plugins'}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(program), str(tmp_path)], check=True, env=environment, timeout=240)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first["weights"], second["weights"])
    assert all(bool(torch.isfinite(value.float()).all()) for value in first["weights"].values())
    for left in (first, second):
        assert left["skipped"] == 1
        assert left["event"]["ranks"] == [1]
        assert left["stopped"].startswith("step 2, epoch 0, batch 2: the loss of rank 1 is not finite")
