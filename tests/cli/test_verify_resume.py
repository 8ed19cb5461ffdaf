"""``verify-resume``: what is exact passes, what is not is named with place and cause, and nothing is left behind."""

from __future__ import annotations

import os
import random
import tempfile
import time

import pytest
import torch
from cli.tiny import Project, TinyData
from lightning.pytorch import Callback

from firstlight.cli import FirstlightCLI
from firstlight.cli._verify_causes import causes_of_repeat, causes_of_resume
from firstlight.cli._verify_compare import KINDS, clocks, differences
from firstlight.cli._verify_digests import digest, digests
from firstlight.cli._verify_facts import _generators
from firstlight.cli._verify_words import quiet_words
from firstlight.modules import SupervisedModule

SPED_UP = ("--cpu_threads=1", "--steps=5")


class Wrapped(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + 0.01 * self.noise(), y


class OwnGenerator(Wrapped):
    def __init__(self, data):
        super().__init__(data)
        self.rng = random.Random(3)

    def noise(self):
        return self.rng.random()


class Unseeded(Wrapped):
    def noise(self):
        return os.urandom(1)[0] / 255


class OtherData(TinyData):
    kind = OwnGenerator

    def setup(self, stage):
        super().setup(stage)
        self.data = self.kind(self.data)


class UnseededData(OtherData):
    kind = Unseeded


class Forgets(SupervisedModule):
    """Keeps a count in a buffer that no checkpoint holds, and acts on it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def training_step(self, batch, batch_idx):
        self.seen += 1
        return super().training_step((batch[0] + 0.01 * self.seen, batch[1]), batch_idx)


class Counts(Callback):
    """Has a state with a clock in it; loads back nothing where it is told so."""

    def __init__(self, loads):
        self.loads, self.count = loads, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.count += 1

    def state_dict(self):
        return {"count": self.count, "now": time.monotonic()}

    def load_state_dict(self, state_dict):
        if self.loads == "not":
            return
        if self.loads == "never":
            raise KeyError("no such state")
        self.count = state_dict["count"]


class Counting(SupervisedModule):
    loads = "all"

    def configure_callbacks(self):
        return [Counts(self.loads)]


class CountingWrong(Counting):
    loads = "not"


class CannotLoad(Counting):
    loads = "never"


@pytest.fixture
def verify(project: Project, tmp_path, monkeypatch, capfd):
    """Run the command; return its code and what it said, having looked that it left nothing."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*words, module=SupervisedModule, data=TinyData):
        before = set(project.root.rglob("*"))
        code = 0
        try:
            args = ["verify-resume", *SPED_UP, *words]
            FirstlightCLI(module, data, project_root=project.root, args=args, allowed_packages=["cli"])
        except SystemExit as ended:
            code = ended.code
        assert set(project.root.rglob("*")) == before
        assert list(temporary.iterdir()) == []
        assert "FIRSTLIGHT_VERIFY_RESUME" not in os.environ
        said = capfd.readouterr()
        return code, said.out + said.err

    return run


def slower(*values):
    return pytest.param(*values, marks=pytest.mark.faults)


def test_a_project_is_exact(verify, project):
    project.write(
        "configs/more.yaml",
        """
        trainer: {accumulate_grad_batches: 2}
        learning_rate: {schedule: {class_path: WarmupCosine, init_args: {warmup: 500}}}
        """,
    )
    code, said = verify("--config", "configs/more.yaml", "--data.num_samples=64", "--wandb={}", module=Counting)
    assert code == 0, said
    # epochs of three steps, of two batches each
    assert "step 1, inside an epoch  step 3, its epoch ends" in said
    assert "left out, since it differs without a stop too: Counts.now" in said
    rows = [line.split() for line in said.splitlines() if line.endswith("equal")]
    assert [" ".join(row[:-2]) for row in rows] == list(KINDS)
    assert said.strip().splitlines()[-1].startswith("exact: ")


@pytest.mark.parametrize(
    ("words", "parts", "kind", "cause"),
    [
        slower(("--exact_resume=null",), {}, "samples", "exact_resume is null"),
        ((), {"data": OtherData}, "samples", "OwnGenerator.rng is a generator of the data's own"),
        ((), {"module": Forgets}, "losses", "seen: buffers with persistent=False"),
        slower((), {"module": CountingWrong}, "callbacks", "Counts.count is not restored as it was"),
    ],
)
def test_what_is_not_exact_is_named(verify, words, parts, kind, cause):
    code, said = verify("--stop_at=2", *words, **parts)
    assert code == 1, said
    assert "step 2, inside an epoch" in said
    assert f"not exact after step 2, inside an epoch:\n  {kind} differ first at step 3 (epoch 0)" in said
    assert f"likely cause: {cause}" in said


@pytest.mark.faults
def test_a_training_that_is_another_one_each_time_cannot_be_compared(verify):
    code, said = verify(data=UnseededData)
    assert code == 1
    assert "not comparable" in said
    assert "samples differ first at step 1 (epoch 0)" in said


@pytest.mark.faults
def test_a_checkpoint_that_cannot_be_resumed_is_a_finding(verify):
    code, said = verify("--stop_at=2", module=CannotLoad)
    assert code == 1
    assert "the checkpoint of step 2, inside an epoch, cannot be resumed: KeyError: 'no such state'" in said


def test_a_training_that_fails_says_nothing_about_resumes(verify):
    code, said = verify("--model.model.init_args.in_features=7")
    assert code == 3
    assert "the training itself failed, which says nothing about resumes: RuntimeError" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--steps=1",), "--steps must be 2 or more"),
        (("--stop_at=5",), "--stop_at 5 leaves no step to compare"),
        slower(("--steps=50", "--stop_at=[3, 40]"), "--stop_at 40: the run ends after step 8"),
        (("--trainer.fast_dev_run=true",), "trainer.fast_dev_run writes none"),
        slower(
            ("--trainer.limit_train_batches=1", "--trainer.max_epochs=1"), "there is no place to stop within 1 steps"
        ),
        (("--data.batch_size=0",), "batch_size must be one or more"),
        (("--resume=last",), "resume is no key"),
    ],
)
def test_mistakes(verify, words, told):
    code, said = verify(*words)
    assert (code, told in said) == (2, True), said


def test_ranks_that_were_started_from_outside_are_refused(verify, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert verify()[0] == 2


def test_help_is_short(project, capsys):
    with pytest.raises(SystemExit):
        project.run("verify-resume", "--help")
    said = capsys.readouterr().out
    assert "--steps" in said
    assert "--stop_at" in said
    assert "--exact_resume" in said
    assert len(said.splitlines()) < 100


# Its parts


def trained(*, samples="abcd", weights="1234", place="0:{}", **more):
    records = [
        {
            "place": place.format(index),
            "step": index + 1,
            "values": {"samples": {"batch": sample}, "weights": {"w": weight, "v": "same"}, **more},
        }
        for index, (sample, weight) in enumerate(zip(samples, weights, strict=True))
    ]
    return {"records": records}


def test_where_trainings_begin_to_differ():
    whole, resumed = trained(), trained(samples="bXY", weights="200", place="0:{}")
    for index, record in enumerate(resumed["records"]):
        record["place"], record["step"] = f"0:{index + 1}", index + 2
    samples, weights = differences([whole], [resumed], after="0:0")
    assert (samples.kind, samples.step, weights.kind, weights.step) == ("samples", 3, "weights", 3)
    assert (weights.names, weights.values) == (["w"], ("3", "0"))
    assert differences([whole], [trained()]) == []
    (second,) = differences([whole, whole], [trained(), trained(weights="1239")])
    assert (second.step, second.names) == (4, ["rank 1: w"])


def test_another_batch_in_its_place_ends_the_comparison():
    (one,) = differences([trained()], [trained(samples="ZZZZ", place="1:{}")])
    assert (one.kind, one.step, one.values) == ("samples", 1, ("batch 0:0", "batch 1:0"))


def test_a_clock_is_what_differs_without_a_stop():
    one, two = trained(callbacks={"Timer.now": "1", "n": "5"}), trained(callbacks={"Timer.now": "2", "n": "5"})
    assert clocks([one], [two]) == {("callbacks", "Timer.now")}
    assert differences([one], [two], leave=clocks([one], [two])) == []
    # weights are no clock: they have to be the same
    assert clocks([one], [trained(weights="1239")]) <= {("callbacks", "Timer.now")}
    assert differences([one], [trained(weights="1239")], leave=clocks([one], [two]))


@pytest.mark.parametrize(
    ("changed", "first", "cause"),
    [
        ({"reload": 2}, "samples", "reload_dataloaders_every_n_epochs"),
        ({"own_state": ["StatefulDataLoader"]}, "samples", "StatefulDataLoader restores its place itself"),
        ({"streams": ["Stream"]}, "samples", "Stream is a stream"),
        ({}, "samples", "Digits keeps state of its own"),
        ({"kernels": True}, "weights", "--trainer.deterministic true"),
        ({"after_save": True}, "weights", "on_train_batch_end comes after callbacks have saved"),
        ({}, "weights", "plain attributes"),
        ({}, "logged values", "what logs w begins anew"),
        ({}, "random numbers", "draws random numbers at the start of a resumed run"),
    ],
)
def test_causes(changed, first, cause):
    known = {"exact_resume": True, "differs": [], "world_size": 1, "reload": 0, "kernels": False, "after_save": False}
    known |= {"forgotten": [], "own_state": [], "streams": [], "datasets": ["Digits"], "generators": []}
    one, two = trained(), trained()
    two["records"][2]["values"][first] = {"w": "other"}
    one["records"][2]["values"].setdefault(first, {"w": "one"})
    found = differences([one], [two])
    assert cause in causes_of_resume(found, known | changed, known)[0]
    assert causes_of_resume(found, known | changed, known | {"world_size": 2})[0] == "the number of ranks was 1, is 2"
    said = causes_of_resume(found, known | changed, known | {"differs": ["the batch size was 8, is 4"]})
    assert said[0] == "the batch size was 8, is 4"  # what ExactResume knows comes first
    assert causes_of_repeat(found, known | changed)


def test_equal_bits_have_equal_digests():
    value = {"a": [torch.tensor([1.0, -0.0]), torch.tensor(0.1)], "b": "word", "c": {3, 1}}
    again = {"a": [torch.tensor([1.0, -0.0]), torch.tensor(0.1)], "b": "word", "c": {1, 3}}
    assert digest(value) == digest(again)
    assert digest(value) != digest({**again, "a": [torch.tensor([1.0, 0.0]), torch.tensor(0.1)]})
    assert digests(torch.tensor([1.5]), "loss") == {"loss": "1.5"}
    assert digest(torch.zeros(2)) != digest(torch.zeros(2, dtype=torch.float64)) != digest(torch.zeros(2, 1))
    assert digest(torch.zeros(4, dtype=torch.bfloat16)[::2]) == digest(torch.zeros(2, dtype=torch.bfloat16))
    assert digest(object()) == digest(object())  # an address is not what a thing is
    assert digest(torch.eye(3).to_sparse()) == digest(torch.eye(3))


def test_generators_of_the_data_are_found_and_not_those_of_the_loader():
    made = torch.utils.data.DataLoader(OwnGenerator([0]), generator=torch.Generator())
    assert _generators(made) == ["OwnGenerator.rng"]
    weighted = torch.utils.data.WeightedRandomSampler([1.0], 1, generator=torch.Generator())
    assert _generators(torch.utils.data.DataLoader([0], sampler=weighted)) == []


def test_words_keep_to_what_the_run_is(tmp_path):
    config = {"trainer": {"limit_train_batches": 3, "limit_val_batches": 0.0, "val_check_interval": 100}}
    config["trainer"] |= {"check_val_every_n_epoch": 1, "accumulate_grad_batches": 4}
    words = quiet_words({**config, "seed_everything": 7}, 9, tmp_path)
    assert not [word for word in words if "limit_" in word or "seed" in word]
    assert "--trainer.val_check_interval=24" in words
    config["trainer"] = {"limit_train_batches": 1.0, "limit_val_batches": None, "val_check_interval": 0.5}
    words = quiet_words({**config, "seed_everything": True}, 9, tmp_path)
    assert {"--trainer.limit_train_batches=6", "--trainer.limit_val_batches=2", "--seed_everything=0"} <= set(words)
    assert not [word for word in words if "val_check" in word]
