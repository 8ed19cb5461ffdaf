"""GradientMonitor: brute force agrees, nothing waits for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from firstlight.callbacks import GradientClipping, GradientMonitor
from helpers import CountReads, Plain, fit, supervised

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
    from firstlight.callbacks._gradients import norms_of

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
