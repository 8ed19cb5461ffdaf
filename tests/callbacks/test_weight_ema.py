"""WeightEMA: Lightning's averages, checkpoints and validation, faster and in float32."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from firstlight.callbacks import WeightEMA
from firstlight.modules import SupervisedModule
from helpers import Plain, classes_data, fit, loader, network, same, supervised, weights


class Trajectory(Callback):
    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.states):
            self.states.append(weights(pl_module))


@pytest.mark.parametrize(("every", "start", "accumulate"), [(1, 0, 1), (3, 0, 1), (2, 5, 1), (1, 0, 2)])
def test_the_average_in_float64(every, start, accumulate):
    module, trajectory = supervised(), Trajectory()
    fit(module, WeightEMA(0.8, every, start_step=start), trajectory, accumulate_grad_batches=accumulate)
    expected = None
    for step, state in enumerate(trajectory.states, start=1):
        if step <= start or (step - start) % every:
            continue
        current = {key: value.double() for key, value in state.items() if value.is_floating_point()}
        if expected is None:
            expected = current
        else:
            kept = 0.8**every
            expected = {key: kept * expected[key] + (1 - kept) * current[key] for key in current}
    for key, value in expected.items():
        torch.testing.assert_close(weights(module)[key].double(), value, rtol=1e-5, atol=1e-6)
    assert torch.equal(
        weights(module)["model.1.num_batches_tracked"], trajectory.states[-1]["model.1.num_batches_tracked"]
    )


def test_equals_lightnings():
    ours, theirs = supervised(model=network(0.0)), supervised(model=network(0.0))
    theirs.load_state_dict(ours.state_dict())
    fit(ours, WeightEMA(0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(theirs, EMAWeightAveraging(decay=0.9))
    for name, value in weights(ours).items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value, weights(theirs)[name], rtol=1e-5, atol=1e-6)


def test_validation_sees_the_average_and_training_its_own_weights():
    seen: dict[str, list[torch.Tensor]] = {"train": [], "val": []}

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen["train"].append(pl_module.net[0].weight.detach().clone())

        def on_validation_batch_start(self, trainer, pl_module, *args):
            seen["val"].append(pl_module.net[0].weight.detach().clone())

    torch.manual_seed(0)
    fit(Plain(), WeightEMA(0.5), Look(), val=loader(shuffle=False), max_epochs=1)
    average = seen["train"][0]
    for weight in seen["train"][1:]:
        average = torch.lerp(average, weight, 0.5)
    torch.testing.assert_close(seen["val"][0], average)
    assert not torch.equal(seen["val"][0], seen["train"][-1])


def test_a_checkpoint_holds_the_average_and_what_training_needs(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 7:
                self.training = weights(pl_module)
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    save = Save()
    spec = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 4}}
    fit(supervised(model=spec), WeightEMA(0.9), save)
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert same(dict(stored["current_model_state"]), save.training)
    loaded = SupervisedModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded.model.weight, stored["state_dict"]["model.weight"])
    assert not torch.equal(loaded.model.weight, save.training["model.weight"])


def test_takes_up_a_run_of_lightnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Save(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                if trainer.global_step == 12:
                    trainer.save_checkpoint(tmp_path / "a.ckpt")

        fit(supervised(), EMAWeightAveraging(decay=0.9), Save())
        stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
        ema = WeightEMA(0.9)
        start: dict[str, torch.Tensor] = {}

        class Look(Callback):
            def on_train_start(self, trainer, pl_module):
                start.update(weights(pl_module))
                start["average"] = ema._averages["model.0.weight"].clone()

        fit(supervised(), ema, Look(), ckpt=tmp_path / "a.ckpt")
    assert torch.equal(start["model.0.weight"], stored["current_model_state"]["model.0.weight"])
    assert torch.equal(start["average"], stored["state_dict"]["model.0.weight"])


def test_sixteen_bit_weights_are_averaged_in_float32():
    """A thousandth of a step is below bfloat16's resolution: its own lerp would not move at all."""

    class Drift(Plain):
        def training_step(self, batch, batch_idx):
            return -self.net.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD([self.net.weight], lr=0.5)

    module = Drift(nn.Linear(1, 1, bias=False).to(torch.bfloat16))
    nn.init.ones_(module.net.weight)
    ema = WeightEMA(0.999)
    last: list[float] = []

    class Look(Callback):
        def on_train_batch_end(self, *args):
            last.append(float(ema._averages["net.weight"]))

    fit(module, ema, Look())
    assert len(set(last)) == len(last) == 24
    current, average = 1.5, 1.5
    for _ in range(23):
        current += 0.5
        average = 0.999 * average + 0.001 * current
    assert last[-1] == pytest.approx(average, rel=1e-5)


def test_a_step_costs_about_a_foreach_lerp():
    """Side by side with torch's own averaging in the two regimes; the bound is loose, the benchmark has the numbers."""
    tensors = [torch.randn(500) for _ in range(400)]
    module = nn.ParameterList(tensors)
    averaged = torch.optim.swa_utils.AveragedModel(module, avg_fn=lambda a, p, n: torch.lerp(a, p, 0.1))
    averaged.update_parameters(module)
    averages, live = [t.clone() for t in tensors], [p.detach() for p in module]

    def seconds(work) -> float:
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return min(times)

    slow = seconds(lambda: averaged.update_parameters(module))
    fast = seconds(lambda: torch._foreach_lerp_(averages, live, 0.1))
    assert fast < slow / 2


def test_weights_are_put_back_when_validation_crashes():
    class Crash(Plain):
        def validation_step(self, batch, batch_idx):
            raise KeyError("boom")

    seen: list[torch.Tensor] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.net[0].weight.detach().clone())

    module = Crash()
    with pytest.raises(KeyError):
        fit(module, WeightEMA(0.5), Look(), val=loader(shuffle=False))
    assert torch.equal(module.net[0].weight, seen[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"decay": 1.0}, "decay must be"), ({"every_n_steps": 0}, "every_n_steps"), ({"start_step": -1}, "start_step")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        WeightEMA(**options)


def test_a_second_fit_starts_afresh():
    ema = WeightEMA(0.9)
    fit(supervised(), ema)
    first, second = supervised(), supervised()
    fit(first, ema)
    fit(second, WeightEMA(0.9))
    assert same(weights(first), weights(second))
    assert len(classes_data()) == 96
