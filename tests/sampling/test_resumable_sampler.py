"""ResumableSampler in a Trainer, and among processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

from firstlight.sampling import ResumableSampler
from helpers import Plain, fit


def test_in_order():
    assert list(ResumableSampler(range(5), shuffle=False, num_replicas=2, rank=1)) == [1, 3, 0]


def test_large_epochs_and_negative_seeds():
    sampler = ResumableSampler(range(4), seed=-3)
    sampler.set_epoch(10**9)
    assert sorted(sampler) == [0, 1, 2, 3]


def test_orders_are_uniform():
    """Each sample takes each place equally often over epochs."""
    counts = torch.zeros(5, 5)
    for epoch in range(2000):
        counts[torch.arange(5), ResumableSampler(range(5)).order(epoch)] += 1
    assert float((counts - 400).abs().max()) < 90  # 5 standard deviations


class Seen(Callback):
    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[0][:, 0].tolist())


class StopAt(Callback):
    """Saves and stops mid-epoch, with the sampler's state by batches trained on."""

    def __init__(self, step: int, path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            sampler = trainer.train_dataloader.sampler
            self.state = sampler.state_dict(consumed=(batch_idx + 1) * 4)
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            trainer.limit_train_batches = batch_idx + 1


def numbered(sampler) -> DataLoader:
    data = torch.arange(22.0).reshape(-1, 1).expand(22, 8).contiguous()
    return DataLoader(TensorDataset(data, torch.arange(22) % 4), batch_size=4, sampler=sampler)


# Lightning asks the loader for a state, and a plain one has none; its sampler does.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("stop", [2, 6, 8, 12])
def test_a_trainer_resumed_mid_epoch_sees_the_batches_of_the_unbroken_run(stop, tmp_path):
    whole = Seen()
    fit(Plain(), whole, data=numbered(ResumableSampler(range(22), seed=4)), max_epochs=3)
    stopping = StopAt(stop, tmp_path / "a.ckpt")
    fit(Plain(), stopping, data=numbered(ResumableSampler(range(22), seed=4)), max_steps=stop, max_epochs=3)
    rest, sampler = Seen(), ResumableSampler(range(22), seed=4)
    sampler.load_state_dict(stopping.state)
    fit(Plain(), rest, data=numbered(sampler), max_epochs=3, ckpt=tmp_path / "a.ckpt")
    assert rest.batches == whole.batches[stop:]


PROGRAM = """
import sys, torch, torch.distributed as dist
from firstlight.sampling import ResumableSampler
sampler = ResumableSampler(range(7), seed=1)  # before there is a process group
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(list(sampler), len(sampler))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_come_from_the_process_group(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    shown = [process.communicate(timeout=60)[0].strip() for process in running]
    expected = [ResumableSampler(range(7), seed=1, num_replicas=2, rank=rank) for rank in range(2)]
    assert shown == [f"{list(sampler)} 4" for sampler in expected]
