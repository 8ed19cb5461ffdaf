"""GradientMonitor: brute force agrees, nothing waits for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loggers import CSVLogger

from firstlight.callbacks import GradientClipping, GradientMonitor, TokenWeightedAccumulation
from helpers import CountReads, Plain, fit, fp16_on_the_cpu, loader, supervised

CLIP = 0.6


class BruteForce(Callback):
    """Norms in float64, parameter by parameter, before and after clipping."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []
        self.blocks: list[dict[str, float]] = []
        self.ratios: list[dict[str, float]] = []
        self.logged: list[dict[str, float]] = []

    @staticmethod
    def norm(tensors: Any) -> float:
        return math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in tensors))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = {name: p for name, p in pl_module.named_parameters() if p.grad is not None}
        self.before.append(self.norm(p.grad for p in named.values()))
        names = {".".join(name.split(".")[:2]) for name in named}
        members = {block: {n: p for n, p in named.items() if n.startswith(block + ".")} for block in names}
        self.blocks.append({block: self.norm(p.grad for p in group.values()) for block, group in members.items()})
        self.weights = {block: {n: p.detach().clone() for n, p in group.items()} for block, group in members.items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.before) > len(self.after):
            self.after.append(self.norm(p.grad for p in pl_module.parameters() if p.grad is not None))
            now = dict(pl_module.named_parameters())
            self.ratios.append(
                {
                    block: self.norm(now[n].detach() - w for n, w in group.items()) / self.norm(group.values())
                    for block, group in self.weights.items()
                }
            )


class Logged(CSVLogger):
    def __init__(self, folder) -> None:
        super().__init__(folder, "", "")
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        super().log_metrics(metrics, step)
        if "grad/norm/total" in metrics:
            self.rows.append(dict(metrics))


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_everything_against_brute_force(accumulate, every, tmp_path):
    truth, logger = BruteForce(), Logged(tmp_path)
    settings = {"accumulate_grad_batches": accumulate, "log_every_n_steps": every, "gradient_clip_val": CLIP}
    fit(supervised(), GradientMonitor(), truth, logger=logger, max_epochs=4, **settings)
    steps = list(range(every - 1, len(truth.before), every))
    assert len(logger.rows) == len(steps) >= 2
    for row, step in zip(logger.rows, steps, strict=True):
        assert row["grad/norm/total"] == pytest.approx(truth.before[step], rel=1e-6)
        assert row["grad/clipped_norm"] == pytest.approx(truth.after[step], rel=1e-6)
        window = truth.before[step - every + 1 : step + 1]
        assert row["grad/clip_rate"] == pytest.approx(sum(norm > CLIP for norm in window) / every)
        assert row["grad/nonfinite_steps"] == 0
        for block, norm in truth.blocks[step].items():
            assert row[f"grad/norm/{block}"] == pytest.approx(norm, rel=1e-6)
            assert row[f"update/ratio/{block}"] == pytest.approx(truth.ratios[step][block], rel=1e-5)
    assert 0 < sum(norm > CLIP for norm in truth.before) < len(truth.before), "the data must show both cases"


@pytest.mark.parametrize("algorithm", ["value", "own"])
def test_other_clipping_is_measured(algorithm, tmp_path):
    class Own(Plain):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            if self.trainer.global_step % 2:
                torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)

    truth, logger = BruteForce(), Logged(tmp_path)
    module = Own() if algorithm == "own" else Plain()
    clip = {} if algorithm == "own" else {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    fit(module, GradientMonitor(), truth, logger=logger, log_every_n_steps=2, **clip)
    for row, step in zip(logger.rows, range(1, 24, 2), strict=True):
        assert row["grad/clipped_norm"] == pytest.approx(truth.after[step], rel=1e-6)
        window = range(step - 1, step + 1)
        assert row["grad/clip_rate"] == sum(truth.after[s] < truth.before[s] * (1 - 1e-6) for s in window) / 2
    assert {row["grad/clip_rate"] for row in logger.rows} == ({0.5} if algorithm == "own" else {1.0})


def test_without_clipping_there_is_no_rate(tmp_path):
    logger = Logged(tmp_path)
    fit(supervised(), GradientMonitor(), logger=logger)
    assert logger.rows
    assert not any("clip" in key for row in logger.rows for key in row)


def test_two_depths_side_by_side_survive_a_resume(tmp_path):
    def monitors():
        return GradientMonitor(depth=1), GradientMonitor(depth=2)

    fit(supervised(), *monitors(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    logger = Logged(tmp_path / "again")
    fit(supervised(), *monitors(), logger=logger, ckpt=tmp_path / "a.ckpt")
    assert {"grad/norm/model", "grad/norm/model.0"} <= logger.rows[0].keys()


def test_depth_names_blocks(tmp_path):
    logger = Logged(tmp_path)
    fit(supervised(), GradientMonitor(depth=1), logger=logger)
    assert {key for key in logger.rows[0] if key.startswith("grad/norm/")} == {"grad/norm/total", "grad/norm/model"}


def test_nonfinite_steps_are_counted_and_survive_a_resume(tmp_path):
    class Broken(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            torch.nn.init.ones_(self.net[4].weight)  # the step before may have left NaN
            for parameter in self.parameters():
                parameter.data.nan_to_num_()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.breaks = {2: float("nan"), 5: float("inf")}.get(batch_idx)
            return loss

        def on_after_backward(self):
            if self.breaks is not None:
                self.net[4].weight.grad[0, 0] = self.breaks

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logger = Logged(tmp_path)
    monitor = GradientMonitor()
    run = fit(Broken(), monitor, logger=logger, log_every_n_steps=1, max_epochs=1, gradient_clip_val=1e9)
    counts = [row["grad/nonfinite_steps"] for row in logger.rows]
    assert counts == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert {row["grad/clip_rate"] for row in logger.rows} == {0.0}, "what is not finite is not clipped"
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = Logged(tmp_path / "again")
    fit(Broken(), GradientMonitor(), logger=again, log_every_n_steps=1, max_epochs=2, ckpt=tmp_path / "a.ckpt")
    assert [row["grad/nonfinite_steps"] for row in again.rows][-1] == 4


@pytest.mark.filterwarnings("ignore:step 3. the gradient of net.0.weight is not finite")
def test_a_step_that_clipping_leaves_out_is_not_finite_and_not_clipped(tmp_path):
    class Once(Plain):
        def on_after_backward(self):
            if self.global_step == 3:
                self.net[0].weight.grad[0, 0] = float("nan")

    logger = Logged(tmp_path)
    clipping = GradientClipping(max_norm=1e9)
    fit(Once(), GradientMonitor(), clipping, logger=logger, log_every_n_steps=1, max_epochs=1)
    assert clipping.skipped_steps == 1
    assert [row["grad/nonfinite_steps"] for row in logger.rows] == [0, 0, 0, *[1] * 9]
    assert {row["grad/clip_rate"] for row in logger.rows} == {0.0}


def test_reads_values_only_when_the_logger_writes(tmp_path):
    def reads(*callbacks: Callback) -> tuple[int, int]:
        logger = Logged(tmp_path / str(len(callbacks)))
        settings = {"max_epochs": -1, "max_steps": 50, "log_every_n_steps": 25, "gradient_clip_val": CLIP}
        with CountReads() as counter:
            fit(supervised(), *callbacks, logger=logger, **settings)
        return counter.reads, sum(len(row) for row in logger.rows)

    bare, _ = reads()
    watched, _ = reads(GradientMonitor())
    metrics, flushes = 4 + 2 * 3, 2  # totals and, for three blocks, norm and ratio
    assert 0 < watched - bare <= metrics * flushes


def test_manual_optimization(tmp_path):
    class Manual(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    truth, logger = BruteForce(), Logged(tmp_path)
    fit(Manual(), GradientMonitor(), truth, logger=logger, log_every_n_steps=3)
    assert [row["grad/norm/total"] for row in logger.rows] == pytest.approx(truth.before[2::3], rel=1e-6)


def test_sparse_gradients_and_lbfgs(tmp_path):
    class Words(Plain):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(10, 4, sparse=True)

        def training_step(self, batch, batch_idx):
            return self.embedding(torch.tensor([1, 1, 3])).square().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.embedding.parameters(), lr=0.1)

    logger = Logged(tmp_path)
    module = Words()
    expected = 2 * module.embedding.weight.detach()[[1, 3]] * torch.tensor([[2.0], [1.0]])
    fit(module, GradientMonitor(), logger=logger, log_every_n_steps=1, max_steps=1)
    assert logger.rows[0]["grad/norm/total"] == pytest.approx(float(expected.norm()), rel=1e-6)

    class Newton(Plain):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    logger = Logged(tmp_path / "newton")
    fit(Newton(), GradientMonitor(), logger=logger, log_every_n_steps=2, max_epochs=1, gradient_clip_val=1e9)
    assert len(logger.rows) == 6
    assert {row["grad/clip_rate"] for row in logger.rows} == {0.0}


def test_half_precision_norms_do_not_overflow():
    from firstlight._gradients import norms_of

    gradients = [torch.full((300, 300), 1000.0, dtype=torch.float16), torch.ones(3, dtype=torch.float64)]
    assert norms_of(gradients).tolist() == pytest.approx([300_000.0, math.sqrt(3)], rel=1e-4)  # in fp16: inf


@pytest.mark.parametrize("options", [{"depth": 0}, {"every_n_steps": 0}])
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be one or more"):
        GradientMonitor(**options)


def test_bf16_autocast(tmp_path):
    logger = Logged(tmp_path)
    truth = BruteForce()
    fit(
        supervised(),
        GradientMonitor(),
        truth,
        logger=logger,
        precision="bf16-mixed",
        log_every_n_steps=4,
    )
    assert [row["grad/norm/total"] for row in logger.rows] == pytest.approx(truth.before[3::4], rel=1e-6)


class Overflows(Plain):
    """Its loss is so large in the third and fifth batch that fp16 gradients overflow at any scale."""

    def __init__(self, optimizer: Any = torch.optim.SGD, *, manual: bool = False, **options: Any) -> None:
        torch.manual_seed(1)
        super().__init__(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)))
        self.automatic_optimization = not manual
        self.make = lambda: optimizer(self.parameters(), lr=0.01, **options)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) * (1e30 if batch_idx in (2, 4) else 1.0)
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self):
        return self.make()


class Steps(Callback):
    """What the weights say: whether each batch moved them, and how far."""

    def __init__(self) -> None:
        self.moved: list[bool] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pairs = zip(self.before, pl_module.parameters(), strict=True)
        self.moved.append(not all(torch.equal(a, b) for a, b in pairs))


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips_are_counted(fused, manual, tmp_path):
    """By what the weights did; of a fused optimizer too, which is called and skips inside its kernel."""
    steps, logger = Steps(), Logged(tmp_path)
    module = Overflows(torch.optim.AdamW, fused=fused, manual=manual)
    settings = {"plugins": [fp16_on_the_cpu()], "log_every_n_steps": 1, "max_epochs": 1}
    run = fit(module, GradientMonitor(), steps, logger=logger, **settings)
    skipped = [sum(not moved for moved in steps.moved[: n + 1]) for n in range(len(steps.moved))]
    assert skipped == [0, 0, 1, 1, *[2] * 8]
    assert [row["grad/skipped_steps"] for row in logger.rows] == skipped
    assert [row["grad/nonfinite_steps"] for row in logger.rows] == skipped
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = Logged(tmp_path / "again")
    module = Overflows(torch.optim.AdamW, fused=fused, manual=manual)
    settings |= {"plugins": [fp16_on_the_cpu()], "max_epochs": 2}
    fit(module, GradientMonitor(), logger=again, ckpt=tmp_path / "a.ckpt", **settings)
    assert again.rows[-1]["grad/skipped_steps"] == 4


def test_without_a_scaler_no_step_is_skipped(tmp_path):
    logger, monitor = Logged(tmp_path), GradientMonitor()
    fit(Plain(), monitor, logger=logger)
    assert not any("skipped" in key for row in logger.rows for key in row)
    assert monitor.state_dict() == {"nonfinite_steps": 0.0, "skipped_steps": 0.0}


def test_a_checkpoint_between_log_entries_has_every_step(tmp_path):
    monitor = GradientMonitor(every_n_steps=100)
    run = fit(Overflows(), monitor, plugins=[fp16_on_the_cpu()], max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    (state,) = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"].values()
    assert state == {"nonfinite_steps": 2.0, "skipped_steps": 2.0}


def test_counting_skipped_steps_waits_for_nothing(tmp_path):
    def reads(*callbacks: Callback) -> int:
        settings = {"plugins": [fp16_on_the_cpu()], "max_epochs": 1, "log_every_n_steps": 100}
        with CountReads() as counter:
            fit(Overflows(), *callbacks, **settings)
        return counter.reads

    assert reads(GradientMonitor()) == reads()


@pytest.mark.parametrize("clip", [None, "ours"])
def test_fused_optimizers_under_the_scaler(clip, tmp_path):
    """Their gradients carry the scale until the kernel; norms are those of the plain optimizer, at any scale."""

    def rows(fused: bool, scale: float) -> list[dict[str, float]]:
        logger = Logged(tmp_path / f"{fused}{scale}")
        callbacks = [GradientMonitor(), *([GradientClipping(0.05)] if clip else [])]
        settings = {"plugins": [fp16_on_the_cpu(init_scale=scale)], "log_every_n_steps": 1, "max_epochs": 1}
        fit(Overflows(torch.optim.AdamW, fused=fused), *callbacks, logger=logger, **settings)
        return [row for row in logger.rows if math.isfinite(row["grad/norm/total"])]

    plain = rows(False, 256.0)
    assert len(plain) == 10
    for scale in (256.0, 4096.0):
        for row, expected in zip(rows(True, scale), plain, strict=True):
            for key in ("grad/norm/total", "grad/norm/net.0", *(["grad/clipped_norm"] if clip else [])):
                assert row[key] == pytest.approx(expected[key], rel=1e-2), (key, scale)
    if clip:
        assert {row["grad/clip_rate"] for row in plain} == {1.0}
        assert [row["grad/clipped_norm"] for row in plain] == pytest.approx([0.05] * 10, rel=1e-3)


def test_a_fused_optimizer_that_is_clipped_before_the_monitor_looks(tmp_path):
    """Under manual optimization the monitor is called after the clipping, which has taken the scale out."""
    logger, plugins = Logged(tmp_path), [fp16_on_the_cpu(init_scale=256.0)]
    module = Overflows(torch.optim.AdamW, fused=True, manual=True)
    callbacks = [GradientClipping(0.05), GradientMonitor()]
    fit(module, *callbacks, plugins=plugins, logger=logger, log_every_n_steps=1, max_epochs=1)
    norms = [row["grad/norm/total"] for row in logger.rows if math.isfinite(row["grad/norm/total"])]
    assert norms == pytest.approx([0.05] * 10, rel=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_last_shorter_window_is_tagged(weighted, tmp_path):
    """12 batches by 5: the last window of an epoch has two, and a gradient of 2/5, unless something weights it."""

    class Constant(Plain):
        """The gradient of every batch is the same."""

        def training_step(self, batch, batch_idx):
            return self.net[0].weight.sum()

    logger = Logged(tmp_path)
    weights = [TokenWeightedAccumulation()] if weighted else []
    settings = {"accumulate_grad_batches": 5, "log_every_n_steps": 1, "max_epochs": 2}
    fit(Constant(), GradientMonitor(), *weights, logger=logger, **settings)
    assert [row["grad/window_fraction"] for row in logger.rows] == pytest.approx([1, 1, 0.4] * 2)
    full = math.sqrt(8 * 16)
    expected = [full, full, full if weighted else 0.4 * full] * 2
    assert [row["grad/norm/total"] for row in logger.rows] == pytest.approx(expected, rel=1e-6)


def test_without_accumulation_no_window_is_tagged(tmp_path):
    logger = Logged(tmp_path)
    fit(Plain(), GradientMonitor(), logger=logger)
    assert logger.rows
    assert not any("window" in key for row in logger.rows for key in row)


class ClipsByHand(Overflows):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(manual=True, **kwargs)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(Plain.training_step(self, batch, batch_idx))
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()


def test_clipping_scaled_gradients_by_hand_is_told_once(tmp_path):
    logger = Logged(tmp_path)
    settings = {"plugins": [fp16_on_the_cpu(init_scale=1024.0)], "max_epochs": 2, "log_every_n_steps": 1}
    module = ClipsByHand()
    with pytest.warns(UserWarning, match=r"self\.clip_gradients under manual .* add GradientClipping") as told:
        fit(module, GradientMonitor(), logger=logger, **settings)
    assert len([warning for warning in told if "clip_gradients" in str(warning.message)]) == 1
    assert logger.rows[0]["grad/norm/total"] == pytest.approx(0.5 / 1024, rel=1e-2), "what the warning is about"
    assert "clip_gradients" not in vars(module)


def test_clipping_by_hand_without_a_scaler_is_no_fault(tmp_path):
    logger = Logged(tmp_path)
    fit(ClipsByHand(), GradientMonitor(), logger=logger, log_every_n_steps=1)
    assert max(row["grad/norm/total"] for row in logger.rows) == pytest.approx(0.5, rel=1e-3)


def test_a_block_of_two_optimizers_is_one_block(tmp_path):
    class Two(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in optimizers[: 1 + batch_idx % 2]:
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[:3].parameters(), lr=0.1), torch.optim.SGD(self.net[3:].parameters(), 0.1)]

    class Truth(Callback):
        def __init__(self):
            self.norms, self.ratios = [], []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.parts = (pl_module.net[:3], pl_module.net)[batch_idx % 2]
            self.before = [p.detach().clone() for p in self.parts.parameters()]

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            now = list(self.parts.parameters())
            change = BruteForce.norm(a.detach() - b for a, b in zip(now, self.before, strict=True))
            self.norms.append(BruteForce.norm(p.grad for p in now))
            self.ratios.append(change / BruteForce.norm(self.before))

    truth, logger = Truth(), Logged(tmp_path)
    # Lightning counts the steps of both optimizers; every entry is of a batch.
    fit(Two(), GradientMonitor(depth=1), truth, logger=logger, log_every_n_steps=1, max_epochs=1)
    assert [row["grad/norm/total"] for row in logger.rows] == pytest.approx(truth.norms, rel=1e-6)
    assert [row["grad/norm/net"] for row in logger.rows] == pytest.approx(truth.norms, rel=1e-6)
    assert [row["update/ratio/net"] for row in logger.rows] == pytest.approx(truth.ratios, rel=1e-5)


def test_parameters_added_in_the_run(tmp_path):
    class Thaws(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)

    class Tunes(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)

    truth, logger = BruteForce(), Logged(tmp_path)
    fit(Tunes(), Thaws(), GradientMonitor(), truth, logger=logger, log_every_n_steps=1, max_epochs=2)
    assert len(logger.rows) == 24
    assert ["grad/norm/net.0" in row for row in logger.rows] == [False] * 12 + [True] * 12
    for row, total, blocks in zip(logger.rows, truth.before, truth.blocks, strict=True):
        assert row["grad/norm/total"] == pytest.approx(total, rel=1e-6)
        assert {key: row[f"grad/norm/{key}"] for key in blocks} == pytest.approx(blocks, rel=1e-6)


def test_layers_added_in_the_run(tmp_path):
    class Grows(Plain):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.extra = torch.nn.Linear(4, 4)
                self.optimizers().optimizer.add_param_group({"params": list(self.extra.parameters())})

        def training_step(self, batch, batch_idx):
            inputs, extra = batch[0], getattr(self, "extra", torch.nn.Identity())
            return torch.nn.functional.cross_entropy(extra(self.net(inputs)), batch[1])

    module, logger = Grows(), Logged(tmp_path)
    fit(module, GradientMonitor(depth=1), logger=logger, log_every_n_steps=1)
    assert ["grad/norm/extra" in row for row in logger.rows] == [False] * 12 + [True] * 12
    assert not any("other" in key for key in logger.rows[-1])
    last = BruteForce.norm(p.grad for p in module.extra.parameters())  # of the last step: they are still there
    assert logger.rows[-1]["grad/norm/extra"] == pytest.approx(last, rel=1e-6)


class Net(torch.nn.Module):
    """Not a ``Sequential``, whose ``compile()`` compiles nothing (torch 2.13)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(x).tanh())


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_networks_keep_their_names(in_place, tmp_path):
    """Both ways of torch.compile; with a backend that runs the graph as it is, since names do not depend on it."""
    graphs: list[Any] = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def rows(compiled: bool) -> list[dict[str, float]]:
        module = Plain(Net())
        if compiled and in_place:
            module.net.compile(backend=backend)
        elif compiled:
            module.net = torch.compile(module.net, backend=backend)
        logger = Logged(tmp_path / str(compiled))
        fit(module, GradientMonitor(), logger=logger, log_every_n_steps=1, max_epochs=1, data=loader(shuffle=False))
        return logger.rows

    expected = rows(False)
    assert "grad/norm/net.body" in expected[0]
    assert rows(True) == [pytest.approx(row, rel=1e-6) for row in expected]
    assert graphs
