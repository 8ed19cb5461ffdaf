"""Stopped anywhere and resumed is the unbroken run, bit for bit: weights, optimizer, random numbers, data, log."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from recovery.ranks_program import samples_of
from recovery.training import Augmented, ByEpoch, Everything, SaveAt, Stream, plain, plain_persistent, run
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from firstlight.callbacks import BatchMixing, EarlyStopping, LearningRateScheduler, WeightEMA
from firstlight.mixing import MixUp
from firstlight.recovery import ExactResume
from firstlight.sampling import Competence, CurriculumSampler, ResumableSampler
from firstlight.schedules import WarmupCosine
from helpers import classes_data, same

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital':UserWarning")  # torchdata 0.11 on torch 2.13

LEFT_OUT = "before a validation, which Lightning leaves out"


def curriculum(workers=0):
    sampler = CurriculumSampler(list(range(40)), Competence(epochs=2, initial=0.3))
    settings = {"num_workers": workers, "persistent_workers": workers > 0}
    return DataLoader(Augmented(), batch_size=8, sampler=sampler, **settings)


def own_generator(make, **kwargs):
    return make(generator=torch.Generator().manual_seed(3), **kwargs)


def torchdata(workers=0, dataset=None, **kwargs):
    settings = {"batch_size": 8, "shuffle": True, "num_workers": workers, **kwargs}
    return StatefulDataLoader(dataset or Augmented(), **settings)


def weighted():
    return plain(shuffle=False, sampler=WeightedRandomSampler(torch.arange(1.0, 41.0).tolist(), 40))


def of_a_project(patience=2) -> list[Callback]:
    """What a project has on its Trainer beside ExactResume, built anew for each run."""
    stopping = EarlyStopping("val/loss", patience=patience, min_delta=0.5)
    return [LearningRateScheduler(WarmupCosine("4ba")), WeightEMA(0.7), stopping]


def all_of_them() -> list[Callback]:
    """With mixing, and an early stop after the second epoch."""
    return [BatchMixing([MixUp(0.4), MixUp(1.0)], num_classes=4, p=0.8), *of_a_project(patience=1)]


TOGETHER = {"pool": all_of_them, "max_epochs": 4, "limit_train_batches": 5}
CASES = {
    "shuffle": (plain, {}),
    "two workers": (functools.partial(plain, 2), {}),
    "persistent workers": (functools.partial(plain_persistent, 2), {"limit_train_batches": 4}),
    "own generator": (functools.partial(own_generator, plain), {}),
    # building workers draws from the loader's generator, which those that live on do not
    "persistent workers, own generator": (
        functools.partial(own_generator, plain_persistent, workers=2),
        {"limit_train_batches": 4},
    ),
    "weighted": (weighted, {}),
    "curriculum": (curriculum, {}),
    "accumulation": (plain, {"accumulate_grad_batches": 2, "val_check_interval": 3}),
    "validation inside": (plain, {"val_check_interval": 2}),
    "two optimizers": (plain, {"module": functools.partial(Everything, manual=True)}),
    "stream": (lambda: DataLoader(Stream(), batch_size=8, num_workers=2), {}),
    # torchdata's keeps no random numbers of its workers: of these, only the first draws any in the data
    "torchdata": (torchdata, {}),
    "torchdata, two workers": (functools.partial(torchdata, 2, dataset=classes_data(40)), {}),
    "a loader for each epoch": (ByEpoch, {"reload_dataloaders_every_n_epochs": 1}),
    "a loader for each epoch, two workers": (
        functools.partial(ByEpoch, seeded=False, workers=2),
        {"reload_dataloaders_every_n_epochs": 1},
    ),
    "a project's callbacks": (plain, {"pool": of_a_project, "module": functools.partial(Everything, schedule=False)}),
    "all together": (
        functools.partial(curriculum, 2),
        {**TOGETHER, "accumulate_grad_batches": 2, "module": functools.partial(Everything, schedule=False)},
    ),
    "all together, two optimizers": (curriculum, {**TOGETHER, "module": functools.partial(Everything, manual=True)}),
}
SLOWER = {
    "a loader for each epoch, not seeded": (
        functools.partial(ByEpoch, seeded=False),
        {"reload_dataloaders_every_n_epochs": 1},
    ),
    "a loader for each epoch, workers that live on": (
        functools.partial(ByEpoch, workers=2, persistent_workers=True),
        {"reload_dataloaders_every_n_epochs": 1},
    ),
    "torchdata, persistent workers": (
        functools.partial(torchdata, 2, dataset=classes_data(40), persistent_workers=True),
        {},
    ),
}


@pytest.fixture
def stopped_and_resumed(tmp_path):
    """Return a function that trains, and resumes from every checkpoint that ``keep`` takes."""

    def compare(make, *, keep=lambda number: True, pool=list, **kwargs):
        whole, batches, rows = run(tmp_path / "whole", ExactResume(), SaveAt(tmp_path), *pool(), data=make(), **kwargs)
        logged = {(row["step"], key): value for row in rows for key, value in row.items() if value}
        resumed = 0
        for number, stop in enumerate(sorted(tmp_path.glob("*.ckpt"))):
            if not keep(number):
                continue
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                left, then, again = run(
                    tmp_path / stop.stem, ExactResume(), *pool(), data=make(), ckpt=stop, seed=9, **kwargs
                )
            if not then:
                continue  # the run was over
            if any(LEFT_OUT in str(warning.message) for warning in said):
                continue  # no validation: see test_it_says_when_a_validation_is_left_out
            assert not [str(one.message) for one in said if "not exact" in str(one.message)], stop.name
            assert same(whole, left), stop.name
            assert then == batches[-len(then) :], stop.name
            values = {(row["step"], key): value for row in again for key, value in row.items() if value}
            assert values == {key: logged[key] for key in values}, stop.name
            last = max((key[0] for key in logged), key=int)
            assert [key for key in logged if key[0] == last and key not in values] == [], stop.name
            resumed += 1
        return resumed

    return compare


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_unbroken(case, stopped_and_resumed):
    make, settings = CASES[case]
    # two epochs of five batches, a validation and an end: those about the middle and the ends
    resumed = stopped_and_resumed(
        make, keep=lambda number: number % 3 == 1 or number in (5, 6), **{"max_epochs": 2, **settings}
    )
    assert resumed >= 3


@pytest.mark.faults
@pytest.mark.parametrize("case", [*CASES, *SLOWER])
def test_resumed_at_every_place_equals_unbroken(case, stopped_and_resumed):
    make, settings = {**CASES, **SLOWER}[case]
    assert stopped_and_resumed(make, **settings) >= 10


def test_without_it_the_runs_differ(tmp_path):
    """The law has teeth: Lightning alone draws other batches and other dropout."""
    whole, batches, _ = run(tmp_path / "whole", SaveAt(tmp_path), data=plain())
    with pytest.warns(UserWarning, match="not resumable"):
        left, then, _ = run(tmp_path / "again", data=plain(), ckpt=tmp_path / "02-batch.ckpt", seed=9)
    assert not same(whole, left)
    assert then != batches[-len(then) :]


def test_it_changes_nothing(tmp_path):
    alone = run(tmp_path / "alone", data=plain(2))
    watched = run(tmp_path / "watched", ExactResume(), SaveAt(tmp_path), data=plain(2))
    assert same(alone[0], watched[0])
    assert alone[1:] == watched[1:]


def stopped(tmp_path, make, **kwargs):
    return run(tmp_path / "whole", ExactResume(), SaveAt(tmp_path), data=make(), **kwargs)


def warned(tmp_path, make, ckpt, match, **kwargs):
    with pytest.warns(UserWarning, match=match):
        return run(
            tmp_path / f"again{len(list(tmp_path.iterdir()))}",
            ExactResume(),
            data=make(),
            ckpt=tmp_path / ckpt,
            **kwargs,
        )


def labels(batches, epoch=0):
    return sorted(label for at, _, _, labels in batches if at == epoch for label in labels)


@pytest.mark.parametrize("kind", ["plain", "resumable", "curriculum"])
@pytest.mark.parametrize("size", [4, 5, 16])
def test_another_batch_size_loses_no_sample_and_repeats_none(kind, size, tmp_path):
    def make(batch_size=8):
        if kind == "plain":
            return plain(batch_size=batch_size)
        full = Competence(epochs=1, initial=1.0)
        sampler = ResumableSampler(range(40), seed=2) if kind == "resumable" else CurriculumSampler(range(40), full)
        return DataLoader(Augmented(), batch_size=batch_size, sampler=sampler)

    _, before, _ = stopped(tmp_path, make, max_epochs=1)
    match = f"the batch size was 8, is {size}.*no sample of this epoch is lost"
    _, after, _ = warned(tmp_path, lambda: make(size), "02-batch.ckpt", match, max_epochs=1)
    first = [batch for batch in before if batch[1] < 2]
    assert labels(first + after) == labels(before)
    assert sum(len(batch[3]) for batch in after) == 24


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_it_says_what_differs(tmp_path):
    stopped(tmp_path, plain, max_epochs=1)
    again = functools.partial(warned, tmp_path, max_epochs=1)
    again(lambda: plain(dataset=Augmented(48)), "02-batch.ckpt", "samples was 40, is 48.*some samples come twice")
    again(lambda: plain(2), "02-batch.ckpt", "num_workers was 0, is 2: what workers draw")
    run(tmp_path / "bare", SaveAt(tmp_path / "bare"), data=plain(), max_epochs=1)
    again(plain, "bare/02-batch.ckpt", "written without ExactResume")


@pytest.mark.parametrize("number", ["02-batch", "05-batch"])
def test_it_says_that_steps_are_of_other_batches(number, tmp_path):
    """Nothing is lost: each batch is trained on once, but in steps of four where they were of two."""
    _, before, _ = stopped(tmp_path, lambda: plain(dataset=Augmented(64)), accumulate_grad_batches=2, max_epochs=1)
    settings = {"accumulate_grad_batches": 4, "max_epochs": 1}
    match = "accumulate_grad_batches was 2, is 4: which batches make a step"
    _, after, _ = warned(tmp_path, lambda: plain(dataset=Augmented(64)), f"{number}.ckpt", match, **settings)
    assert [batch[1] for batch in after] == list(range(int(number[:2]), 8))
    assert labels(before[: int(number[:2])] + after) == labels(before)


def test_it_says_that_new_loaders_are_not_followed(tmp_path):
    stopped(tmp_path, plain, max_epochs=1)
    again = {"max_epochs": 1, "reload_dataloaders_every_n_epochs": 2}
    warned(tmp_path, plain, "02-batch.ckpt", "loaders are made anew every 2 epochs", **again)


def test_it_says_when_a_validation_is_left_out(tmp_path):
    stopped(tmp_path, plain, val_check_interval=2, max_epochs=1)
    warned(tmp_path, plain, "02-batch.ckpt", LEFT_OUT, val_check_interval=2, max_epochs=1)


def test_it_says_when_a_checkpoint_is_from_inside_a_step(tmp_path):
    class Fails(Everything):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                self.trainer.save_checkpoint(tmp_path / "inside.ckpt")
            return super().training_step(batch, batch_idx)

    run(tmp_path / "whole", ExactResume(), data=plain(), module=Fails, max_epochs=1)
    warned(tmp_path, plain, "inside.ckpt", "written inside a step", max_epochs=1)


def test_it_knows_the_samples_of_a_batch(tmp_path):
    exact, seen = ExactResume(), []

    class Ask(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            (indices,) = exact.sample_indices(batch_idx)
            seen.append([Augmented().data[index][1].item() for index in indices] == batch[1].tolist())

    for workers in (0, 2):
        run(tmp_path / str(workers), exact, Ask(), data=plain(workers), max_epochs=2)
    assert seen == [True] * 20


def test_its_state_is_plain_values(tmp_path):
    stopped(tmp_path, functools.partial(plain, 2), accumulate_grad_batches=2, max_epochs=1)
    allowed = {str(one) for one in torch.serialization.get_safe_globals()}
    assert not [name for name in allowed if "lightning" in name or "firstlight" in name]
    for path in tmp_path.glob("*.ckpt"):
        state = torch.load(path, weights_only=True)["firstlight_exact_resume"]
        assert state["world_size"] == len(state["ranks"]) == 1


@pytest.mark.faults
def test_two_processes_resume_exactly(tmp_path):
    """Under DDP each rank has its own random numbers, workers and share of the data."""
    program = Path(__file__).with_name("ddp_program.py")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'plugins'}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(program), str(tmp_path)], check=True, env=environment, timeout=240)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found["differs_without"]
        for name in ("02-batch", "05-epoch"):
            assert same(found["whole"], found[name]), (rank, name)
    assert not same(*(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["whole"] for rank in (0, 1)))


@pytest.mark.faults
def test_another_number_of_ranks_loses_no_sample_and_repeats_none(tmp_path):
    """Two go on with what one began, and one with what two began."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    first = samples_of(SaveAt(alone))
    everything = sorted(itertools.chain(*first))
    assert len(set(everything)) == 48
    program = Path(__file__).with_name("ranks_program.py")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'plugins'}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), str(both), str(alone / "02-batch.ckpt")]
    subprocess.run(command, check=True, env=environment, timeout=240)
    ranks = [torch.load(both / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    resumed = [batch for rank in ranks for batch in rank["resumed"]]
    assert sorted(itertools.chain(*first[:2], *resumed)) == everything
    with pytest.warns(UserWarning, match="the number of ranks was 2, is 1; no sample of this epoch is lost"):
        resumed = samples_of(ckpt=both / "02-batch.ckpt")
    begun = [batch for rank in ranks for batch in rank["whole"][:2]]
    assert sorted(itertools.chain(*begun, *resumed)) == everything
