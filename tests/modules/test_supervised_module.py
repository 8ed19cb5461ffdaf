"""SupervisedModule and ObjectiveModule: terms add up, checkpoints are plain and bring the same module back."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback
from modules.generative_models import Kept, SaveAfter
from torch import nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from firstlight.callbacks import OverfitOneBatch
from firstlight.losses import CrossEntropyLoss
from firstlight.modules import ObjectiveModule, SupervisedModule
from firstlight.regularizers import ActivationPenalty, L1Penalty, L2Penalty
from firstlight.schedules import Constant, CosineAnnealing
from helpers import ResumableLoader, classes_data, fit, loader, supervised, trainer, weights


def accuracy() -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes=4, average="micro")


def test_terms_and_penalties_are_logged_apart_and_add_up():
    kept = Kept()
    fit(supervised(penalties=[L2Penalty(0.01), L1Penalty(0.001), L2Penalty(0.1)]), kept, val=loader(shuffle=False))
    for row in kept.rows:
        parts = [row[f"train/{key}"] for key in ("loss/task", "penalty/l2", "penalty/l1", "penalty/l2_2")]
        assert row["train/loss"] == pytest.approx(sum(parts), rel=1e-6)
        assert all(part > 0 for part in parts)
        assert "val/loss" not in row or row["val/loss"] == row["val/loss/task"], "penalties are for training"


def test_activations_are_penalized_from_the_first_step():
    """The sum of the outputs of a layer, by magnitude, a sample; against the layer run by hand."""

    class First(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                with torch.no_grad():
                    self.expected = 0.5 * float(pl_module.model[0](batch[0]).abs().sum() / len(batch[0]))

    kept, first = Kept(), First()
    fit(supervised(penalties=[ActivationPenalty(0.5, layers=["model.0"])]), first, kept, max_steps=1)
    assert kept.rows[0]["train/penalty/activation"] == pytest.approx(first.expected, rel=1e-5)


def test_validation_is_the_loss_over_all_samples():
    module = supervised(metrics={"accuracy": accuracy()})
    data = classes_data(50)
    batches = torch.utils.data.DataLoader(data, batch_size=16)  # the last batch has two samples
    (logged,) = trainer().validate(module, batches, verbose=False)
    logits = module.eval()(data.tensors[0])
    expected = nn.functional.cross_entropy(logits, data.tensors[1], label_smoothing=0.1)
    assert logged["val/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert logged["val/accuracy"] == pytest.approx((logits.argmax(1) == data.tensors[1]).float().mean().item())


def test_mapping_batches_and_prediction():
    module = supervised().eval()
    inputs, target = classes_data(8).tensors
    assert torch.equal(
        module.loss_terms({"input": inputs, "target": target})["task"], module.loss_terms((inputs, target))["task"]
    )
    for batch in (inputs, (inputs, target), {"input": inputs, "target": target}):
        assert torch.equal(module.predict_step(batch, 0), module(inputs))
    with pytest.raises(TypeError, match=r"batch must be \(input, target\) or a mapping"):
        module.loss_terms((inputs, target, target))
    with pytest.raises(TypeError, match=r"got \['image', 'label'\]"):
        module.loss_terms({"image": inputs, "label": target})


MODEL_SPEC = {
    "class_path": "torch.nn.Sequential",
    "init_args": [
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 4}},
        {"class_path": "torch.nn.BatchNorm1d", "init_args": {"num_features": 4}},
    ],
}


def test_a_checkpoint_is_plain_and_brings_the_same_module_back_in_a_fresh_process(tmp_path):
    torch.manual_seed(0)
    module = SupervisedModule(
        MODEL_SPEC,
        CrossEntropyLoss([1.0, 2.0, 3.0, 4.0], label_smoothing=0.3),
        penalties=[L2Penalty(0.01)],
        metrics={"accuracy": accuracy()},
        optimizer=functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        loss_weights={"task": Constant(warmup=5)},
    )
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    torch.save(module.eval()(classes_data().tensors[0]), tmp_path / "logits.pt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    code = f"""
import torch
from firstlight.modules import SupervisedModule
from helpers import classes_data
module = SupervisedModule.load_from_checkpoint({str(tmp_path / "a.ckpt")!r}).eval()
assert torch.equal(module(classes_data().tensors[0]), torch.load({str(tmp_path / "logits.pt")!r}))
assert type(module.loss).__name__ == "CrossEntropyLoss" and module.loss.label_smoothing == 0.3
assert module.loss.weight.tolist() == [1, 2, 3, 4]
assert module.penalties["l2"].weight == 0.01 and module.loss_weights["task"].warmup == 5
optimizer = module.configure_optimizers()
assert type(optimizer) is torch.optim.SGD and optimizer.defaults["lr"] == 0.05 and optimizer.defaults["momentum"] == 0.9
assert module.stage_metrics["val"]["accuracy"].average == "micro"
print(dict(module.hparams))
"""
    from test_architecture import ROOT

    environment = {"PYTHONPATH": f"{ROOT.parent}:{ROOT.parents[1] / 'tests'}", "PATH": ""}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip().splitlines()[-1] == str(dict(module.hparams)), "loaded again, it records the same"


SYSTEM = {"class_path": "os.system", "init_args": ["touch ran"]}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}


def test_a_spec_runs_no_code_but_constructors_of_parts(tmp_path):
    for spec in (SYSTEM, POPEN, {"class_path": "torch.nn.Sequential", "init_args": [POPEN]}):
        with pytest.raises(TypeError, match="must be a module, an optimizer or a class of firstlight"):
            supervised(model=spec)
    assert not (tmp_path / "ran").exists()


class Custom(nn.Module):
    """Keeps an attribute by the name of its argument, with another meaning."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width * 2
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x)


def test_a_lost_argument_is_an_error_never_a_default(tmp_path):
    module = SupervisedModule(Custom(), nn.CrossEntropyLoss())
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(
        ValueError, match=r"model: .*Custom whose constructor arguments could not be recorded; pass model="
    ):
        SupervisedModule.load_from_checkpoint(tmp_path / "a.ckpt")
    loaded = SupervisedModule.load_from_checkpoint(tmp_path / "a.ckpt", model=Custom())
    assert torch.equal(loaded.model.layer.weight, module.model.layer.weight)


class WithLambda(ObjectiveModule):
    """Somebody's own module: plain numbers, a model, keywords passed on."""

    def __init__(self, width: int, net: nn.Module, **kwargs) -> None:
        super().__init__(**kwargs)
        self.net, self.scale = net, nn.Linear(4, width)

    def loss_terms(self, batch):
        logits = self.net(batch[0])
        fit_term = nn.functional.cross_entropy(logits, batch[1])
        return {"fit": fit_term, "size": self.scale(logits).square().mean()}


def test_own_modules_record_their_arguments_and_those_passed_on(tmp_path):
    module = WithLambda(3, nn.Linear(8, 4), penalties=[L1Penalty(0.5)], loss_weights={"size": 0.1})
    assert module.hparams["width"] == 3
    assert module.hparams["net"]["init_args"] == {"in_features": 8, "out_features": 4, "bias": True}
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    loaded = WithLambda.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.scale.out_features == 3
    assert loaded.penalties["l1"].weight == 0.5
    assert loaded.loss_weights == {"size": 0.1}
    assert torch.equal(loaded.net.weight, module.net.weight)


SCHEDULES = {"size": Constant(warmup="1ep"), "fit": CosineAnnealing(floor=0.5)}


def total_at(row: dict[str, float], step: int, total: int, warmup: int) -> float:
    size = min(1.0, (step + 1) / warmup) * row["train/loss/size"]
    return size + CosineAnnealing(floor=0.5).factor(step, total) * row["train/loss/fit"]


@pytest.mark.parametrize("duration", ["1ep", "5ba"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_may_be_schedules_of_the_step_after_a_resume_too(tmp_path, accumulate, duration):
    schedules = SCHEDULES | {"size": Constant(warmup=duration)}

    def run(*callbacks, ckpt=None):
        kept, module = Kept(), WithLambda(3, nn.Linear(8, 4), loss_weights=schedules)
        settings = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "ckpt": ckpt}
        fit(
            module,
            kept,
            *callbacks,
            data=ResumableLoader(),
            val=loader(shuffle=False),
            num_sanity_val_steps=1,
            **settings,
        )
        return kept.rows

    rows = run(SaveAfter(tmp_path / "a.ckpt", 3))
    resumed = run(ckpt=tmp_path / "a.ckpt")
    assert [len(rows), len(resumed)] == [10, 7]
    warmup = math.ceil(5 / accumulate)  # steps in an epoch of 5 batches, the last one a shorter window
    for batch, row in zip([*range(10), *range(3, 10)], rows + resumed, strict=True):
        step = batch // 5 * warmup + batch % 5 // accumulate
        assert row["train/loss"] == pytest.approx(total_at(row, step, 2 * warmup, warmup), rel=1e-6)


def test_a_second_fit_has_its_own_length():
    module, kept = WithLambda(3, nn.Linear(8, 4), loss_weights=SCHEDULES), Kept()
    fit(module, data=ResumableLoader(), max_epochs=1)
    fit(module, kept, data=ResumableLoader(), max_epochs=3)
    for step, row in enumerate(kept.rows):
        assert row["train/loss"] == pytest.approx(total_at(row, step, 15, 5), rel=1e-6)


class Manual(WithLambda):
    """Two optimizers, each of which Lightning counts as a step."""

    def __init__(self, **kwargs) -> None:
        super().__init__(3, nn.Linear(8, 4), **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.net, self.scale)]


def test_under_manual_optimization_a_step_is_a_batch():
    kept = Kept()
    run = fit(Manual(loss_weights=SCHEDULES), kept, data=ResumableLoader(), max_epochs=2)
    assert run.global_step == 20
    for step, row in enumerate(kept.rows):
        assert row["train/loss"] == pytest.approx(total_at(row, step, 10, 5), rel=1e-6)


def test_scheduled_weights_count_as_1_where_no_run_is_under_way():
    module = WithLambda(3, nn.Linear(8, 4), loss_weights={"size": Constant(warmup=99), "fit": CosineAnnealing()})
    (row,) = trainer().validate(module, loader(shuffle=False), verbose=False)
    assert row["val/loss"] == pytest.approx(row["val/loss/size"] + row["val/loss/fit"], rel=1e-6)
    probe = OverfitOneBatch()
    fit(module, probe, max_steps=1)
    assert probe.result.passed is not None, "a copy without a Trainer can be trained"


def test_a_schedule_of_a_run_without_end_is_named():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(classes_data())

    module = WithLambda(3, nn.Linear(8, 4), loss_weights={"fit": CosineAnnealing()})
    data = torch.utils.data.DataLoader(Endless(), batch_size=8)
    with pytest.raises(ValueError, match=r"loss_weights\['fit'\] must be a schedule without fractions of the run"):
        fit(module, data=data, max_epochs=1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WithLambda(3, nn.Linear(8, 4), loss_weights={"siez": 1.0}), ValueError, "did you mean 'size'"),
        (lambda: supervised(loss=CrossEntropyLoss(reduction="none")), ValueError, r"loss term 'task' must be a tensor"),
        (lambda: SupervisedModule("net", CrossEntropyLoss()), TypeError, "model must be an nn.Module or its spec"),
        (lambda: SupervisedModule(nn.Linear(2, 2), "ce"), TypeError, "loss must be a loss module"),
        (lambda: supervised(penalties=[0.1]), TypeError, "penalties must be modules"),
        (lambda: supervised(metrics={"a": 1}), TypeError, r"metrics\['a'\] must be a torchmetrics.Metric"),
        (lambda: supervised(optimizer="sgd"), TypeError, "optimizer must be a function"),
        (lambda: supervised(loss_weights={"task": "1"}), TypeError, r"loss_weights\['task'\] must be a number"),
        (
            lambda: supervised(loss={"class_path": "firstlight.losses.CrossEntropyLos"}),
            ValueError,
            "did you mean 'CrossEntropyLoss'",
        ),
        (
            lambda: supervised(loss={"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothin": 0.1}}),
            TypeError,
            "did you mean 'label_smoothing'",
        ),
        (
            lambda: supervised(loss=SYSTEM),
            TypeError,
            "a module, an optimizer or a class of firstlight; got 'os.system'",
        ),
        (lambda: supervised(loss=POPEN), TypeError, "class of firstlight; got 'subprocess.Popen'"),
        (lambda: supervised(loss={"class_path": "nowhere.Loss"}), ValueError, "cannot import 'nowhere'"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        fit(make())


def test_an_optimizer_function_that_returns_something_else_is_named():
    with pytest.raises(TypeError, match="optimizer must be one that returns an Optimizer; got 3"):
        fit(supervised(optimizer=lambda groups: 3))


def test_defaults_are_recorded_so_that_a_later_version_cannot_change_them():
    hparams = SupervisedModule(nn.Linear(8, 4), nn.CrossEntropyLoss()).hparams
    assert hparams["compile"] is False
    assert hparams["penalties"] == []


def test_groups_decay_by_kind():
    (decay, free) = supervised().configure_optimizers().param_groups
    assert (decay["name"], decay["weight_decay"], len(decay["params"])) == ("decay", 1e-3, 2)
    assert (free["name"], free["weight_decay"], len(free["params"])) == ("no_decay", 0.0, 4)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's compiler, when first imported
def test_compiling_leaves_the_keys_of_the_checkpoint(tmp_path):
    module = supervised(compile=True)
    before = set(weights(module))
    module.configure_model()
    assert set(weights(module)) == before
    assert module.model._compiled_call_impl is not None


def test_metrics_of_regression():
    module = SupervisedModule(nn.Linear(8, 1), nn.MSELoss(), metrics={"mse": MeanSquaredError()})
    inputs = classes_data(20).tensors[0]
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True)), 7)
    (logged,) = trainer().test(module, data, verbose=False)
    assert logged["test/mse"] == pytest.approx(logged["test/loss"], rel=1e-5)


def test_validating_before_training_leaves_no_tensors_that_training_cannot_use():
    """MeanSquaredError writes to its states in place; trainer.validate leaves inference tensors."""
    module = SupervisedModule(nn.Linear(8, 1), nn.MSELoss(), metrics={"mse": MeanSquaredError()})
    inputs = classes_data(20).tensors[0]
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True)), 7)
    run = trainer()
    run.validate(module, data, verbose=False)
    run.fit(module, data, data)
    assert run.callback_metrics["val/mse"] == pytest.approx(run.callback_metrics["val/loss"].item(), rel=1e-5)
