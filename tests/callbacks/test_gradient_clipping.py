"""GradientClipping: torch's numbers where torch has them, brute force where not, and steps left out without a trace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import GradientClipping, GradientMonitor
from firstlight.callbacks._gradient_clipping import _clip_units, _scale_to, unit_norm
from helpers import CountReads, Plain, classes_data, fit, fp16_on_the_cpu, network, same, supervised, weights


class Norms(Callback):
    """Total norms before clipping, and after it."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    def norm(self, pl_module) -> float:
        return math.sqrt(
            sum(float(p.grad.double().square().sum()) for p in pl_module.parameters() if p.grad is not None)
        )

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append(self.norm(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.after) < len(self.before):
            self.after.append(self.norm(pl_module))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("ours", "theirs"), [({"max_norm": 0.5}, "norm"), ({"max_value": 0.05}, "value")])
def test_equals_the_trainers_own_bit_for_bit(ours, theirs, accumulate):
    a, b = supervised(), supervised()
    (limit,) = ours.values()
    fit(a, GradientClipping(**ours), accumulate_grad_batches=accumulate)
    fit(b, gradient_clip_val=limit, gradient_clip_algorithm=theirs, accumulate_grad_batches=accumulate)
    assert same(weights(a), weights(b))


@pytest.mark.parametrize("first", [True, False])
def test_monitors_see_the_gradient_before_it_in_any_order(first):
    norms, clipping = Norms(), GradientClipping(0.3)
    monitor = GradientMonitor()
    run = fit(supervised(), *([clipping, norms, monitor] if first else [norms, monitor, clipping]), log_every_n_steps=1)
    assert max(norms.before) > 0.3
    assert max(norms.after) <= 0.3 + 1e-6
    assert norms.after == pytest.approx([min(norm, 0.3) for norm in norms.before], rel=1e-4)
    assert run.callback_metrics["grad/norm/total"].item() == pytest.approx(norms.before[-1], rel=1e-5)
    assert run.callback_metrics["grad/clipped_norm"].item() == pytest.approx(norms.after[-1], rel=1e-5)


def test_percentile_of_recent_norms_against_brute_force():
    norms = Norms()
    fit(supervised(), norms, GradientClipping(percentile=60.0), max_epochs=3)
    for step, (before, after) in enumerate(zip(norms.before, norms.after, strict=True)):
        history = torch.tensor(norms.before[: step + 1], dtype=torch.float64)
        limit = float(history.quantile(0.6)) if step + 1 >= 10 else math.inf
        assert after == pytest.approx(min(before, limit), rel=1e-4), step
    assert norms.after != norms.before


def test_adaptive_in_closed_form():
    """A unit with weights [3, 4] (norm 5) and fraction 0.1 lets a gradient of norm 0.5 through, not one of norm 10."""
    gradient = torch.tensor([[6.0, 8.0], [0.3, 0.4]])
    _clip_units(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), gradient, 0.1)
    torch.testing.assert_close(gradient, torch.tensor([[0.3, 0.4], [0.3, 0.4]]))
    gradient = torch.tensor([3.0, 4.0])  # weights of norm 0 count as 1e-3: 0.1 * 1e-3 in all
    _clip_units(torch.zeros(2), gradient, 0.1)
    torch.testing.assert_close(gradient, torch.tensor([0.6e-4, 0.8e-4]))


def test_adaptive_in_a_run():
    norms = Norms()
    fit(supervised(), norms, GradientClipping(adaptive=0.01))
    assert all(after < before for before, after in zip(norms.before, norms.after, strict=True))


def test_adaptive_leaves_excluded_parameters_alone():
    norms = Norms()
    fit(supervised(), norms, GradientClipping(adaptive=1e-6, adaptive_exclude=["weight", "bias"]))
    assert norms.after == norms.before


def test_unit_norm_by_shape():
    assert unit_norm(torch.ones(4, 3, 2, 2)).shape == (4, 1, 1, 1)
    assert unit_norm(torch.full((4,), 2.0)).item() == 4.0


class Breaks(Plain):
    """Its gradient is not finite on the batch that is marked."""

    def __init__(self, **kwargs) -> None:
        torch.manual_seed(1)
        super().__init__(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)), **kwargs)

    def training_step(self, batch, batch_idx):
        self.marked = bool((batch[0] > 1e6).any())
        return super().training_step((batch[0].clamp(max=1e6), batch[1]), batch_idx)

    def on_after_backward(self):
        if self.marked:
            self.net[2].weight.grad[0, 0] = float("nan")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def test_a_skipped_step_leaves_no_trace():
    """Moments, step counts and decay included: the run is the one in which the batch was never there."""
    inputs, target = classes_data(40).tensors
    broken = inputs.clone()
    broken[16:24] = 1e7
    clipping = GradientClipping(1.0)
    a, b = Breaks(), Breaks()
    with pytest.warns(UserWarning, match=r"step 2: the gradient of net\.2\.weight is not finite; the step is left out"):
        fit(a, clipping, data=DataLoader(TensorDataset(broken, target), batch_size=8), max_epochs=1)
    without = torch.cat([inputs[:16], inputs[24:]]), torch.cat([target[:16], target[24:]])
    fit(b, GradientClipping(1.0), data=DataLoader(TensorDataset(*without), batch_size=8), max_epochs=1)
    assert clipping.skipped_steps == 1
    assert same(weights(a), weights(b))


def test_raise_names_the_parameter():
    inputs, target = classes_data(40).tensors
    inputs[16:24] = 1e7
    data = DataLoader(TensorDataset(inputs, target), batch_size=8)
    with pytest.raises(FloatingPointError, match=r"step 2: the gradient of net\.2\.weight is not finite"):
        fit(Breaks(), GradientClipping(1.0, on_nonfinite="raise"), data=data)


def test_ignore_waits_for_nothing():
    def reads(*callbacks: Callback) -> int:
        with CountReads() as counter:
            fit(supervised(), *callbacks, max_epochs=-1, max_steps=50)
        return counter.reads

    bare = reads()
    assert reads(GradientClipping(0.5, on_nonfinite="ignore")) == bare
    assert reads(GradientClipping(0.5)) == bare + 50


def test_half_precision_gradients_do_not_become_zero():
    """torch's own clipping of these gives exactly zero: the sum of squares overflows fp16."""
    grads = [torch.full((300,), 1e4, dtype=torch.float16) for _ in range(3)]
    from firstlight._gradients import norms_of

    total = torch.linalg.vector_norm(norms_of(grads))
    assert total.item() == pytest.approx(1e4 * math.sqrt(900), rel=1e-3)
    _scale_to(grads, total, 1.0)
    assert math.sqrt(sum(float(g.double().square().sum()) for g in grads)) == pytest.approx(1.0, rel=1e-2)


def test_manual_optimization_and_sparse_gradients():
    class Words(Plain):
        def __init__(self):
            super().__init__(network())
            self.automatic_optimization = False
            self.embedding = torch.nn.Embedding(10, 4, sparse=True)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.embedding(torch.tensor([1, 1, 3])).square().sum())
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.embedding.parameters(), lr=1.0)

    module = Words()
    before = module.embedding.weight.detach().clone()
    fit(module, GradientClipping(0.01), max_steps=1)
    assert (module.embedding.weight.detach() - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_two_writers_are_refused():
    with pytest.raises(ValueError, match=r"two writers of the gradient: .* Trainer\(gradient_clip_val=1"):
        fit(supervised(), GradientClipping(0.5), gradient_clip_val=1.0)


def test_the_module_is_put_back():
    module = supervised()
    fit(module, GradientClipping(0.5))
    assert "configure_gradient_clipping" not in vars(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "GradientClipping must be given exactly one of max_norm, max_value"),
        ({"max_norm": 1.0, "max_value": 1.0}, "exactly one of"),
        ({"max_norm": 0.0}, "max_norm must be above zero"),
        ({"max_value": -1.0}, "max_value must be above zero"),
        ({"percentile": 100.0}, "percentile must be below 100"),
        ({"adaptive": float("nan")}, "adaptive must be above zero"),
        ({"max_norm": 1.0, "on_nonfinite": "drop"}, "on_nonfinite must be one of skip, raise, ignore"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GradientClipping(**options)


class Steady(Plain):
    """Its weights do not move, and its gradient is ``value`` in every element, whatever the batch."""

    def __init__(self, *, fused: bool = False, manual: bool = False, values: dict[int, float] | None = None) -> None:
        super().__init__(torch.nn.Linear(8, 8, bias=False))
        self.automatic_optimization = not manual
        self.fused = fused
        self.values = values or {}
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.values.get(batch_idx, 1.0) * self.net.weight.sum()
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.0, fused=self.fused)
        optimizer.register_step_post_hook(self._look)
        return optimizer

    def _look(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if getattr(optimizer, "found_inf", 0.0):
            return  # a fused kernel is called all the same, and does nothing
        scale = getattr(optimizer, "grad_scale", None)  # what a fused kernel divides by
        self.seen.append(self.net.weight.grad / (1.0 if scale is None else scale))


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise", "ignore"])
def test_under_the_scaler_it_clips_without_the_scale(on_nonfinite, fused, manual):
    """Norm 8 to norm 2 and elements 1 to 0.25, at a scale of 1024, and steps that overflow are left to the scaler."""
    for options in ({"max_norm": 2.0}, {"max_value": 0.25}):
        module = Steady(fused=fused, manual=manual, values={1: math.inf})
        clipping = GradientClipping(**options, on_nonfinite=on_nonfinite)
        fit(module, clipping, plugins=[fp16_on_the_cpu(init_scale=1024.0)], max_steps=4)
        assert len(module.seen) == 3
        for gradient in module.seen:
            torch.testing.assert_close(gradient, torch.full((8, 8), 0.25))
        assert clipping.skipped_steps == 0


def test_adaptive_under_the_scaler_of_a_fused_optimizer():
    """A unit of weights [w, w, ...] lets through a gradient of 0.1 times their norm, at any scale."""
    module = Steady(fused=True)
    torch.nn.init.constant_(module.net.weight, 0.5)
    fit(module, GradientClipping(adaptive=0.1), plugins=[fp16_on_the_cpu(init_scale=4096.0)], max_steps=2)
    for gradient in module.seen:
        torch.testing.assert_close(gradient, torch.full((8, 8), 0.05))


@pytest.mark.parametrize("fused", [False, True])
def test_overflows_do_not_enter_the_percentile(fused):
    """Two infinite norms, then 4, 8, 4, 8, ...: from the tenth step on the middle is 6 or 4, not 8."""
    values = {batch: math.inf if batch < 2 else 0.5 + 0.5 * (batch % 2) for batch in range(12)}
    module = Steady(fused=fused, values=values)
    plugins = [fp16_on_the_cpu(init_scale=1.0)]
    fit(module, GradientClipping(percentile=50.0), plugins=plugins, max_epochs=1, data=_batches(12))
    applied = [float(gradient.norm()) for gradient in module.seen]
    assert applied == pytest.approx([4, 8, 4, 8, 4, 8, 4, 6, 4, 6], rel=1e-5)


def _batches(number: int) -> DataLoader:
    return DataLoader(TensorDataset(*classes_data(number).tensors), batch_size=1)


class TwoSizes(Plain):
    """Manual optimization of two parts whose gradients have norms 8 and 0.8."""

    def __init__(self) -> None:
        super().__init__(torch.nn.ModuleList([torch.nn.Linear(8, 8, bias=False) for _ in range(2)]))
        self.automatic_optimization = False
        self.seen: dict[int, list[float]] = {0: [], 1: []}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for number, optimizer in enumerate(self.optimizers()):
            optimizer.zero_grad()
            wobble = 1.0 + 0.01 * (batch_idx % 3)
            self.manual_backward((1.0, 0.1)[number] * wobble * self.net[number].weight.sum())
            optimizer.step()
            gradient = self.net[number].weight.grad
            self.seen[number].append(0.0 if gradient is None else float(gradient.norm()))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.0) for part in self.net]


def test_every_optimizer_has_a_percentile_of_its_own(tmp_path):
    """Beside an optimizer of ten times its norm, each is clipped to the middle of its own; across a resume too."""

    def run(stop: int, ckpt: Any = None) -> tuple[dict[int, list[float]], Any]:
        module = TwoSizes()
        trainer = fit(module, GradientClipping(percentile=50.0), data=_batches(24), max_steps=2 * stop, ckpt=ckpt)
        return module.seen, trainer

    seen, _ = run(18)
    for number, size in enumerate((8.0, 0.8)):
        before = [size * (1.0 + 0.01 * (batch % 3)) for batch in range(18)]
        for step in range(18):
            limit = float(torch.tensor(before[: step + 1]).median()) if step >= 9 else math.inf
            assert seen[number][step] == pytest.approx(min(before[step], limit), rel=2e-3)
        assert max(seen[number][:9]) > 1.015 * size, "before the tenth step nothing is clipped"
        assert max(seen[number][9:]) < 1.015 * size
    _, trainer = run(12)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (state,) = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"].values()
    assert state["seen"] == {0: 12, 1: 12}
    assert [ring.nanmedian().item() for ring in state["norms"].values()] == pytest.approx([8.08, 0.808], rel=1e-5)


def test_the_culprit_of_several_optimizers_is_named():
    class Breaks(TwoSizes):
        def on_after_backward(self) -> None:
            if self.net[1].weight.grad is not None and self.trainer.global_step == 3:
                self.net[1].weight.grad[0, 0] = math.nan

    clipping = GradientClipping(1e9)
    module = Breaks()
    with pytest.warns(UserWarning, match=r"step 3: the gradient of net\.1\.weight is not finite; the step is left out"):
        fit(module, clipping, data=_batches(6), max_steps=3)
    assert clipping.skipped_steps == 1


def test_compiled_networks_are_clipped_the_same():
    class Net(torch.nn.Module):  # not a Sequential, whose compile() compiles nothing (torch 2.13)
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(0.0)

        def forward(self, x: torch.Tensor) -> Any:
            return self.layers(x)

    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    def end(compiled: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        module, norms = Plain(Net()), Norms()
        if compiled:
            module.net.compile(backend=backend)
        fit(module, GradientClipping(0.3), norms)
        assert max(norms.before) > 0.3
        assert max(norms.after) <= 0.3 + 1e-6
        return weights(module)

    expected = end(False)
    assert same(end(True), expected)
    assert graphs
