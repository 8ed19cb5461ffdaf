"""TokenWeightedAccumulation: whatever falls into which batch and rank, the gradient is that of all tokens at once."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from two_counts import COUNTS, Tokens, full_batch_gradient, micro_batches

from firstlight.callbacks import GradientClipping, GradientMonitor, TokenWeightedAccumulation
from helpers import CountReads, Plain, fit, fp16_on_the_cpu

TESTS = Path(__file__).parents[1]


class Gradients(Callback):
    """The gradient of each step, as other callbacks see it."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.after_backward: list[torch.Tensor] = []

    @staticmethod
    def flat(pl_module) -> torch.Tensor:
        return torch.cat([p.grad.detach().flatten() for p in pl_module.parameters()])

    def on_after_backward(self, trainer, pl_module):
        self.after_backward.append(self.flat(pl_module))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(self.flat(pl_module))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def run(*callbacks: Callback, counts=COUNTS[0], accumulate=3, module=None, **kwargs):
    module = module or Tokens()
    grads = Gradients()
    data = micro_batches(counts, rank=0)
    settings = {"accumulate_grad_batches": accumulate, "max_epochs": 1} | kwargs
    trainer = fit(module, *callbacks, grads, data=DataLoader(data, batch_size=None), **settings)
    windows = [data[start : start + accumulate] for start in range(0, len(data), accumulate)]
    return trainer, grads, [full_batch_gradient(window) for window in windows]


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 7])
def test_the_gradient_is_that_of_the_full_batch(accumulate):
    """Unequal counts, a micro batch of none (whose loss is NaN), a last shorter window, in any place of the list."""
    assert 0 in COUNTS[0]
    assert len(COUNTS[0]) % 3 == 1
    for order in ((0, 1), (1, 0)):
        first = Gradients()
        callbacks = [TokenWeightedAccumulation(), first]
        _, last, expected = run(*(callbacks[i] for i in order), accumulate=accumulate)
        assert len(expected) == len(first.seen) == len(last.seen) == math.ceil(len(COUNTS[0]) / accumulate)
        for number, truth in enumerate(expected):
            if truth.norm() == 0:
                assert not first.seen[number].any()
                continue
            assert relative(first.seen[number], truth) < 1e-10
            assert relative(last.seen[number], truth) < 1e-10
            ends = min((number + 1) * accumulate, len(COUNTS[0])) - 1
            assert relative(last.after_backward[ends], truth) < 1e-10


def test_without_it_the_gradient_is_another():
    _, grads, expected = run()
    assert min(relative(gradient, truth) for gradient, truth in zip(grads.seen, expected, strict=True)) > 0.1


def test_what_is_logged_and_returned_is_the_loss_itself():
    class Logs(Tokens):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss)
            return loss

    class Outputs(Callback):
        def __init__(self):
            self.seen, self.logged = [], []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen.append(float(outputs["loss"]))
            self.logged.append(float(trainer.callback_metrics["train/loss"]))

    with_it, without = Outputs(), Outputs()
    run(TokenWeightedAccumulation(), with_it, module=Logs())
    run(without, module=Logs())
    assert with_it.seen == pytest.approx(without.seen, nan_ok=True, abs=0)
    assert with_it.logged == pytest.approx(without.logged, nan_ok=True, abs=0)


@pytest.mark.parametrize("clip", ["trainer", "callback"])
def test_clipping_and_its_monitor_see_the_right_gradient(clip):
    monitor, limit = GradientMonitor(every_n_steps=1), 1e-3
    callbacks = [monitor, TokenWeightedAccumulation()]
    settings = {"log_every_n_steps": 1}
    if clip == "trainer":
        settings["gradient_clip_val"] = limit
    else:
        callbacks.insert(0, GradientClipping(limit))
    trainer, _, expected = run(*callbacks, **settings)
    assert trainer.callback_metrics["grad/norm/total"].item() == pytest.approx(float(expected[-1].norm()), rel=1e-10)
    assert trainer.callback_metrics["grad/clipped_norm"].item() == pytest.approx(limit, rel=1e-2)  # torch adds 1e-6


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision):
    """To the digits of the precision; under 16-mixed with counts that would overflow fp16 if they were the weights."""
    plugin = fp16_on_the_cpu(init_scale=2.0**12) if precision == "16-mixed" else MixedPrecision(precision, "cpu")
    counts = [700, 3, 0, 1500, 20, 5]
    module = Tokens().float()
    trainer, grads, expected = run(TokenWeightedAccumulation(), counts=counts, module=module, plugins=[plugin])
    for gradient, truth in zip(grads.seen, expected, strict=True):
        assert relative(gradient.double(), truth) < (2e-2 if precision == "bf16-mixed" else 2e-3)
    assert trainer.global_step == 2


def test_the_unit_of_the_weights_survives_a_resume(tmp_path):
    """Under fp16 it decides what overflows; a new run takes its own."""
    one = TokenWeightedAccumulation()
    trainer, _, _ = run(one, counts=[700, 3, 20])
    assert one.state_dict() == {"unit": 512.0}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    run(one, counts=[5, 3, 20], max_epochs=2, ckpt=tmp_path / "a.ckpt")
    assert one.state_dict() == {"unit": 512.0}
    run(one, counts=[5, 3, 20])
    assert one.state_dict() == {"unit": 4.0}


def test_sparse_gradients():
    _, grads, expected = run(TokenWeightedAccumulation(), Densify(), module=Tokens(sparse=True))
    assert max(relative(a, b) for a, b in zip(grads.seen, expected, strict=True)) < 1e-10


class Densify(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.embedding.weight.grad = pl_module.embedding.weight.grad.to_dense()

    def on_after_backward(self, trainer, pl_module):
        self.on_before_optimizer_step(trainer, pl_module, None)


class Counted(Tokens):
    """Says itself how many tokens are valid."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.asked = 0

    def num_valid(self, batch):
        self.asked += 1
        return int((batch[1] != -100).sum())

    def twice(self, batch):
        return 2 * self.num_valid(batch)


@pytest.mark.parametrize("count", [None, "twice", lambda batch: (batch[1] >= 0).sum()])
def test_ways_to_count(count):
    """Only the proportions matter."""
    module = Counted()
    _, grads, expected = run(TokenWeightedAccumulation(count), module=module)
    assert max(relative(a, b) for a, b in zip(grads.seen, expected, strict=True)) < 1e-10
    assert bool(module.asked) is not callable(count)


def test_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=TokenWeightedAccumulation)
    spec = {"class_path": "TokenWeightedAccumulation", "init_args": {"count": "num_valid", "ignore_index": 0}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jsonargparse renames its own functions
        parsed = parser.parse_object({"callback": spec})
        callback = getattr(parser, "instantiate", parser.instantiate_classes)(parsed).callback
    assert (callback.count, callback.ignore_index) == ("num_valid", 0)


@pytest.mark.parametrize("form", ["mapping", "regression", "ignored"])
def test_what_counts_by_default(form):
    target = torch.tensor([[1, 2, -100], [-100, -100, 7]])
    callback = TokenWeightedAccumulation(ignore_index=7 if form == "ignored" else -100)
    batch = {"mapping": {"labels": target}, "regression": (0, target.float()), "ignored": [0, target]}[form]
    assert int(callback._valid_targets(batch)) == {"mapping": 3, "regression": 2, "ignored": 5}[form]


def test_a_last_step_that_returns_none_ends_the_window_too():
    class Skips(Tokens):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    counts = [5, 2, 4]
    with pytest.warns(UserWarning, match="returned `None`"):
        _, grads, _ = run(TokenWeightedAccumulation(), counts=counts, module=Skips())
    assert relative(grads.seen[0], full_batch_gradient(micro_batches(counts, 0)[:2])) < 1e-10


def test_a_window_that_is_broken_off_leaves_nothing():
    class Stops(Tokens):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.current_epoch == 0 and batch_idx == 2 else None  # ends the epoch

    counts = [5, 2, 4]
    _, grads, (truth,) = run(TokenWeightedAccumulation(), counts=counts, module=Stops(), max_epochs=2)
    assert len(grads.seen) == 1
    assert relative(grads.seen[0], truth) < 1e-10


def test_nothing_waits_for_the_device():
    def reads(*callbacks: Callback) -> int:
        with CountReads() as counter:
            run(*callbacks)
        return counter.reads

    assert reads(TokenWeightedAccumulation()) == reads()


def test_manual_optimization_stands_aside():
    class Manual(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))

    with pytest.warns(UserWarning, match="TokenWeightedAccumulation stands aside under manual optimization"):
        fit(Manual(), TokenWeightedAccumulation(), max_epochs=1)


def test_lbfgs_evaluates_its_closure_several_times():
    class Newton(Tokens):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.0, max_iter=3)

    _, grads, expected = run(TokenWeightedAccumulation(), counts=[3, 7], accumulate=1, module=Newton())
    for gradient in grads.seen:
        assert min(relative(gradient, truth) for truth in expected) < 1e-10


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="count must be a function of the batch, the name of a method, or None; got 3"):
        TokenWeightedAccumulation(3)
    with pytest.raises(ValueError, match="count must be a method of the module; got 'nothing'"):
        run(TokenWeightedAccumulation("nothing"))
    with pytest.raises(ValueError, match=r"batch must be \(input, target\) or a mapping .*; or pass count=; got 'str'"):
        TokenWeightedAccumulation()._valid_targets("a batch")


def test_a_method_of_the_modules_own_is_put_back():
    class Own(Tokens):
        calls = 0

    module = Own()

    def backward(loss, *args, **kwargs):
        Own.calls += 1
        loss.backward(*args, **kwargs)

    module.backward = backward
    _, grads, expected = run(TokenWeightedAccumulation(), module=module)
    assert max(relative(a, b) for a, b in zip(grads.seen, expected, strict=True)) < 1e-10
    assert module.backward is backward
    assert Own.calls == len(COUNTS[0])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_have_the_gradient_of_one(strategy, accumulate, tmp_path):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "plugins")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "two_counts.py"), str(tmp_path), strategy, str(accumulate)]
    settings = {"capture_output": True, "text": True, "timeout": 120, "check": False, "cwd": tmp_path}
    done = subprocess.run(command, env=environment, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    data = [micro_batches(COUNTS[rank], rank) for rank in (0, 1)]
    starts = range(0, len(data[0]), accumulate)
    assert len(ranks[0]["with"]) == len(ranks[0]["without"]) == len(starts)
    for number, start in enumerate(starts):
        truth = full_batch_gradient([batch for batches in data for batch in batches[start : start + accumulate]])
        for rank in ranks:
            assert relative(rank["with"][number], truth) < 1e-10
            assert relative(rank["without"][number], truth) > 1e-2
    # Per step: one sum of the count. And one at the start, for the unit.
    assert ranks[0]["sums"] == ranks[1]["sums"] == len(starts) + 1


def test_the_reference_is_the_mean_over_all_tokens():
    """The oracle itself: one batch of all tokens, through torch alone."""
    data = micro_batches(COUNTS[0], 0)
    module = Tokens()
    inputs, target = (torch.cat([batch[i].flatten() for batch in data]) for i in (0, 1))
    logits = nn.functional.linear(module.embedding.weight[inputs], module.head.weight, module.head.bias)
    cross_entropy(logits, target).backward()
    assert relative(full_batch_gradient(data), Gradients.flat(module)) < 1e-14
