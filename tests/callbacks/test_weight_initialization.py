"""WeightInitialization: sees every layer, once, and never writes over weights that mean something."""

from __future__ import annotations

import math

import jsonargparse
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from firstlight.callbacks import WeightInitialization
from firstlight.callbacks._weight_initialization import looks_fresh
from firstlight.initializers import InitPlan, InitRule
from helpers import Plain, Wrapped, classes_data, fit, loader, network, same, supervised, weights


class Snapshot(Callback):
    def on_train_start(self, trainer, pl_module):
        self.start = weights(pl_module)


class Everywhere(Plain):
    """Layers made in __init__, setup and configure_model."""

    def __init__(self):
        super().__init__(nn.Linear(8, 8))

    def setup(self, stage):
        self.made_in_setup = nn.Linear(8, 8)

    def configure_model(self):
        if not hasattr(self, "made_late"):
            self.made_late = nn.Linear(8, 4)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.made_late(self.made_in_setup(self.net(batch[0]))), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


CONSTANT = InitPlan([InitRule("normal", std=0.0)])


def test_sees_layers_made_anywhere():
    snapshot = Snapshot()
    module = Everywhere()
    fit(module, WeightInitialization(CONSTANT), snapshot, max_steps=1)
    assert all(not snapshot.start[f"{name}.weight"].any() for name in ("net", "made_in_setup", "made_late"))
    assert "configure_model" not in vars(module)


def test_a_checkpoint_wins(tmp_path):
    first, snapshot = supervised(), Snapshot()
    run = fit(first, max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    fit(supervised(), WeightInitialization(force=True), snapshot, ckpt=tmp_path / "a.ckpt")
    assert same(snapshot.start, weights(first))


def test_a_second_fit_keeps_what_was_trained():
    module = supervised()
    fit(module, WeightInitialization())
    trained, snapshot = weights(module), Snapshot()
    fit(module, WeightInitialization(), snapshot)
    assert same(snapshot.start, trained)


def test_pretrained_layers_are_left_alone_with_a_warning():
    module, snapshot = supervised(), Snapshot()
    with torch.no_grad():
        module.model[0].weight.mul_(3)
    pretrained = module.model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"leaves 1 layer\(s\) alone .* \(model.0\)"):
        fit(module, WeightInitialization(), snapshot)
    assert torch.equal(snapshot.start["model.0.weight"], pretrained)
    forced, snapshot = supervised(), Snapshot()
    with torch.no_grad():
        forced.model[0].weight.mul_(3)
    fit(forced, WeightInitialization(force=True), snapshot)
    assert not torch.equal(snapshot.start["model.0.weight"], pretrained)


def test_seed_decides_and_defaults_to_the_global_one():
    def start(**kwargs):
        snapshot = Snapshot()
        fit(supervised(), WeightInitialization(**kwargs), snapshot, max_steps=1)
        return snapshot.start["model.0.weight"]

    assert torch.equal(start(), start())
    assert torch.equal(start(seed=1), start(seed=1))
    assert not torch.equal(start(seed=1), start(seed=2))


def test_report_says_target_and_measured():
    callback = WeightInitialization()
    fit(supervised(), callback, max_steps=1)
    row = next(row for row in callback.report.rows if row.name == "model.0")
    assert row.scheme == "he"
    assert row.target_std == pytest.approx(math.sqrt(2 / 8))
    assert "model.0" in str(callback.report)


def test_the_report_is_in_the_run_folder_once(tmp_path):
    callback, module = WeightInitialization(lsuv=True), supervised()
    run = fit(module, callback, logger=CSVLogger(tmp_path, "", ""), max_epochs=1)
    text = (tmp_path / "initialization.txt").read_text()
    assert text == f"{callback.report}\n\nlsuv (standard deviations of outputs):\n{callback.lsuv_report}\n"
    assert "model.0  Linear" in text
    run.save_checkpoint(tmp_path / "a.ckpt")
    fit(module, WeightInitialization(), logger=CSVLogger(tmp_path / "again", "", ""))
    assert not (tmp_path / "again" / "initialization.txt").exists(), "a trained module is not filled again"
    settings = {"logger": CSVLogger(tmp_path / "resumed", "", ""), "ckpt": tmp_path / "a.ckpt"}
    fit(supervised(), WeightInitialization(), **settings)
    assert not (tmp_path / "resumed" / "initialization.txt").exists(), "the checkpoint has replaced what was filled"


@pytest.mark.filterwarnings("ignore:Experiment logs directory")  # it is not empty, on purpose
def test_without_a_logger_no_file_is_written_and_a_folder_in_the_way_is_named(tmp_path):
    fit(supervised(), WeightInitialization(), max_steps=1, default_root_dir=tmp_path)
    assert not list(tmp_path.rglob("*.txt"))
    (tmp_path / "initialization.txt").mkdir()
    with pytest.warns(UserWarning, match="could not write its report to"):
        fit(supervised(), WeightInitialization(), max_steps=1, logger=CSVLogger(tmp_path, "", ""))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of parts that its compiler imports
@pytest.mark.parametrize("how", ["the net in place", "the whole module"])
def test_a_compiled_module_is_filled_as_one_that_is_not(how):
    def start(compiled):
        torch.manual_seed(1)
        module, snapshot = Plain(Wrapped(network(0.0))), Snapshot()
        if compiled and how == "the net in place":
            module.net.compile(backend="eager")
        given = torch.compile(module, backend="eager") if compiled and how == "the whole module" else module
        fit(given, WeightInitialization(seed=5), snapshot, max_steps=1)
        return snapshot.start

    plain, compiled = start(False), start(True)
    torch.compiler.reset()
    assert same(plain, compiled)
    assert plain["net.layers.0.weight"].std().item() == pytest.approx(math.sqrt(2 / 8), rel=0.15)


def test_a_plan_is_read_from_yaml():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(WeightInitialization, "callback")
    rule = "{scheme: xavier, feeds: [tanh], distribution: uniform}"
    given = parser.parse_args(["--callback.plan", f"{{rules: [{rule}, {{scheme: normal, std: 0.02}}]}}"])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # older jsonargparse
    rules = InitPlan([InitRule("xavier", feeds=["tanh"], distribution="uniform"), InitRule("normal", std=0.02)])
    assert instantiate(given).callback.plan == rules


def test_only_fit_initializes():
    from helpers import trainer

    module = supervised()
    before = weights(module)
    trainer(callbacks=[WeightInitialization(CONSTANT)]).validate(module, loader(shuffle=False), verbose=False)
    assert same(before, weights(module))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(30, 40),
        nn.Conv2d(3, 8, 3),
        nn.Conv1d(8, 8, 3, groups=4),
        nn.ConvTranspose2d(6, 3, 4),
        nn.Embedding(50, 8),
        nn.Embedding(50, 8, padding_idx=0),
        nn.BatchNorm2d(4),
        nn.LayerNorm(5),
        nn.GroupNorm(2, 4),
        nn.Bilinear(4, 6, 5),
        nn.EmbeddingBag(50, 8),
        nn.LSTM(4, 6, num_layers=2),
        nn.GRUCell(4, 6),
        nn.MultiheadAttention(8, 2),
        nn.MultiheadAttention(8, 2, kdim=3),
    ],
    ids=str,
)
def test_fresh_layers_look_fresh_and_trained_ones_do_not(layer):
    for seed in range(20):
        torch.manual_seed(seed)
        getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))()
        assert looks_fresh(layer), seed
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.02)
    for _ in range(50):
        for weight in layer.parameters():
            weight.grad = torch.randn_like(weight) + 0.5
        optimizer.step()
    assert not looks_fresh(layer)


def test_pretrained_attention_is_left_alone_as_a_whole():
    module = Plain(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 4)))
    attention = module.net[0].self_attn
    with torch.no_grad():
        attention.in_proj_bias.fill_(0.1)
    before, snapshot, callback = weights(attention), Snapshot(), WeightInitialization()
    with pytest.warns(UserWarning, match=r"leaves 2 layer\(s\) alone .*self_attn, net.0.self_attn.out_proj"):
        fit(module, callback, snapshot, max_steps=1)
    start = {name.removeprefix("net.0.self_attn."): value for name, value in snapshot.start.items() if "attn" in name}
    assert same(start, before)
    assert "net.0.linear1" in [row.name for row in callback.report.initialized]


def variances(module, call) -> list[float]:
    found: list[float] = []
    handles = [
        layer.register_forward_hook(lambda _l, _i, out: found.append(float(out.detach().var())))
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return found


class AtStart(Callback):
    """Unit variance on the whole of the training data, as measured when training starts."""

    def on_train_start(self, trainer, pl_module):
        inputs = torch.stack([x for x, _ in classes_data()])
        self.variances = variances(pl_module, lambda: (getattr(pl_module, "model", None) or pl_module.net)(inputs))
        self.hooks = [layer for layer in pl_module.modules() if layer._forward_hooks]
        self.own = {"forward", "log", "log_dict", "configure_model"} & vars(pl_module).keys()


class StepOnly(Plain):
    """No forward: the batch goes through training_step, which logs."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
        return loss


@pytest.mark.parametrize(
    "make",
    [lambda: supervised(model=network(0.0)), lambda: StepOnly(network(0.0))],
    ids=["forward", "training_step"],
)
def test_lsuv_scales_on_a_training_batch(make):
    start, callback = AtStart(), WeightInitialization(lsuv=True)
    fit(make(), callback, start, data=loader(batch_size=48), max_steps=1)
    assert len(start.variances) == 2
    assert all(0.7 < value < 1.3 for value in start.variances), start.variances
    assert not start.hooks
    assert not start.own
    assert len(callback.lsuv_report.initialized) == 2
    without = AtStart()
    fit(make(), WeightInitialization(), without, data=loader(batch_size=48), max_steps=1)
    assert not all(0.7 < value < 1.3 for value in without.variances)


class Order(Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[0].clone())


class Data(LightningDataModule):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return self.make()


class Stream(IterableDataset):
    def __iter__(self):
        for x, y in classes_data(40):
            yield x + torch.randn(()), y


@pytest.mark.parametrize(
    "data",
    [
        loader,
        lambda: DataLoader(classes_data(), 8, shuffle=True, generator=torch.Generator().manual_seed(2)),
        lambda: Data(loader),
        lambda: Data(lambda: DataLoader(Stream(), batch_size=8)),
        lambda: loader(workers=1),
    ],
    ids=["loader", "generator", "datamodule", "stream", "persistent workers"],
)
def test_lsuv_moves_no_data(data):
    seen = []
    for callbacks in ([], [WeightInitialization(lsuv=True)]):
        order = Order()
        fit(supervised(), order, *callbacks, data=data())
        seen.append(torch.cat(order.batches))
    assert torch.equal(*seen)


def test_lsuv_sees_what_the_transfer_hooks_make():
    class Scaled(Plain):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return 100 * batch[0], batch[1]

    module, start = Scaled(), AtStart()
    fit(module, WeightInitialization(lsuv=True), start, data=loader(batch_size=48), max_steps=1)
    assert start.variances[0] < 1e-3, "measured here without the hook: a hundred times smaller inputs"


def test_lsuv_leaves_pretrained_layers_alone():
    module, snapshot = supervised(), Snapshot()
    with torch.no_grad():
        module.model[4].weight.mul_(3)
    pretrained = module.model[4].weight.detach().clone()
    callback = WeightInitialization(lsuv=True)
    with pytest.warns(UserWarning, match="do not look freshly constructed"):
        fit(module, callback, snapshot)
    assert torch.equal(snapshot.start["model.4.weight"], pretrained)
    assert [row.name for row in callback.lsuv_report.initialized] == ["model.0"]


def test_lsuv_refuses_data_that_it_would_move():
    with pytest.raises(ValueError, match="or call lsuv_ with a batch instead"):
        fit(supervised(), WeightInitialization(lsuv=True), data=DataLoader(Stream(), batch_size=8))
    with pytest.raises(ValueError, match="with one training loader"):
        fit(supervised(), WeightInitialization(lsuv=True), data={"a": loader(), "b": loader()})
