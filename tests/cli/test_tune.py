"""The parts of a search: spaces, the store, what becomes of a trial, what is written at the end."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import yaml
from jsonargparse import ArgumentParser
from optuna.trial import TrialState

from firstlight.cli._errors import UsageError
from firstlight.cli._tune_confirm import confirm
from firstlight.cli._tune_options import Tuning, add_options
from firstlight.cli._tune_reporter import TrialReporter
from firstlight.cli._tune_results import table, write_results
from firstlight.cli._tune_search import compare, search
from firstlight.cli._tune_setup import Setup, set_up
from firstlight.cli._tune_space import Choice, Range, as_it_is, overlay, read_space, unfolded, values
from firstlight.cli._tune_store import Store, quiet_optuna
from helpers import fit, loader, supervised

HERE = Path(__file__).parent
LIGHT = [sys.executable, str(HERE / "tune_trial.py")]
NESTED = """
    model.optimizer:
      choice:
        as_it_is: {}
        sgd: {class_path: torch.optim.SGD, init_args: {lr: {log_uniform: [0.01, 1.0]}, momentum: 0.9}}
        adamw: {class_path: torch.optim.AdamW, init_args: {lr: {log_uniform: [0.0001, 0.01]}}}
    data.batch_size: {choice: [4, 8]}
    trainer.max_epochs: {int: [1, 6, 2]}
"""


@pytest.fixture(autouse=True)
def _quiet():
    with pytest.MonkeyPatch.context() as patch, quiet_optuna():
        patch.setenv("PYTHONPATH", str(HERE.parents[1] / "plugins"))  # of the processes: this package, not another
        yield


# Spaces


def test_a_space_is_read_and_drawn_from(project):
    space = read_space(project.write("tune/priority_2.yaml", NESTED))
    assert space["data.batch_size"] == Choice({"4": 4, "8": 8})
    assert space["trainer.max_epochs"] == Range(1, 5, step=2), "6 is no step from 1"
    drawn = {"model.optimizer": "adamw", "model.optimizer.adamw.init_args.lr": 0.003, "data.batch_size": "4"}
    assert values(space, lambda name, _: drawn.get(name, 3)) == {
        "model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
        "data.batch_size": 4,
        "trainer.max_epochs": 3,
    }
    drawn["model.optimizer"] = "as_it_is"
    assert "model.optimizer" not in values(space, lambda name, _: drawn.get(name, 3))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lr: {log_unifrom: [0.1, 1.0]}", "'log_unifrom' is no kind of range; did you mean 'log_uniform'?"),
        ("lr: {log_uniform: [0, 1.0]}", "must begin above zero"),
        ("lr: {uniform: [1.0, 0.1]}", "must rise from low to high"),
        ("lr: {uniform: [1e-3, 0.1]}", "write 1.0e-3"),
        ("n: {int: [1, 2.5]}", "whole numbers"),
        ("n: {choice: [1]}", "at least two values"),
        ("n: {choice: [{a: 1}, {b: 2}]}", "need names"),
        ("n: 3", "must be one of uniform, log_uniform, int, log_int, choice"),
        ("- lr", "must hold configuration keys"),
        ("lr: [", "is not valid YAML"),
    ],
)
def test_what_a_space_cannot_say(project, line, said):
    with pytest.raises(UsageError, match=r"priority_1\.yaml") as error:
        read_space(project.write("tune/priority_1.yaml", line))
    assert said in str(error.value)


def test_points_are_evenly_spread_and_keep_their_bounds():
    assert Range(1e-4, 1e-2, log=True).points(3) == [1e-4, pytest.approx(1e-3, rel=1e-9), 1e-2]
    assert Range(0.0, 1.0).points(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Range(2, 10, step=4).points(10) == [2, 6, 10]
    assert Range(1, 64, log=True, step=1).points(4) == [1, 4, 16, 64]
    assert unfolded(Choice({"a": {"x": Range(0.0, 1.0), "y": Choice({"p": 1, "q": 2})}}), 2) == [
        {"x": x, "y": y} for x in (0.0, 1.0) for y in (1, 2)
    ]


def test_what_the_configuration_has_already(project):
    space = read_space(project.write("tune/priority_2.yaml", NESTED))
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    config = {"model": {"optimizer": sgd}, "data": {"batch_size": 8}, "trainer": {"max_epochs": 2}}
    assert as_it_is(space, config) == {"model.optimizer": "as_it_is", "data.batch_size": "8"}, "2 is between the steps"
    config["trainer"]["max_epochs"] = 3
    assert as_it_is(space, config)["trainer.max_epochs"] == 3


def test_an_overlay_has_the_class_of_what_it_sets_and_nothing_that_is_gone():
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    config = {"model": {"optimizer": sgd, "loss": 1}, "learning_rate": None}
    keys = ["model.optimizer.init_args.lr", "model.optimizer.init_args.betas", "learning_rate.schedule"]
    only = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    assert overlay(config, keys) == {"model": {"optimizer": only}, "learning_rate": {}}
    assert overlay(config, ["model.optimizer.lr"]) == {"model": {"optimizer": only}}, "init_args need not be said"


# The store


def test_two_workers_never_have_the_same_trial_and_run_as_many_as_were_asked_for(tmp_path):
    where = tmp_path / "study.log"
    store = Store.opened("study", str(where), "min")
    for _ in range(4):  # left behind by workers that are gone: these are what two could both take
        trial = store.study.ask()
        trial.set_user_attr("owner", {**_me(), "pid": _dead_pid()})
    command = [sys.executable, str(HERE / "tune_worker.py"), str(where), "60"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 3
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    claimed = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    assert sum(map(bool, claimed)) >= 2, "one worker took all: nothing was shared"
    assert Counter(int(index) for part in claimed for index in part) == Counter(range(60))
    assert list(store.trials) == list(range(60))


def _me() -> dict[str, object]:
    from firstlight.cli import _tune_store

    return _tune_store._me()


def _dead_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


@pytest.fixture(params=["{}/study.log", "sqlite:///{}/study.db"], ids=["file", "database"])
def store(request, tmp_path) -> Iterator[Store]:
    """A study in a file, and in a database, which has one worker here and may be SQLite."""
    opened = Store.opened("study", request.param.format(tmp_path), "min")
    yield opened
    storage = opened.study._storage
    if hasattr(storage, "_backend") and hasattr(storage._backend, "engine"):
        storage.remove_session()
        storage._backend.engine.dispose()


def test_what_a_worker_had_in_hand_is_begun_again_with_its_values(store):
    first, index = store.claim(2)
    value = first.suggest_float("x", 0.0, 1.0)
    assert index == 0
    second, index = store.claim(2)
    assert index == 1, "the worker of the first lives: this process"
    assert store.claim(2) is None
    first.set_user_attr("owner", {**_me(), "pid": _dead_pid()})
    again, index = store.claim(2)
    assert index == 0
    assert again.suggest_float("x", 0.0, 1.0) == value
    assert [t.number for t in store.trials.values()] == [again.number, second.number]
    assert store.claim(2) is None


def test_a_worker_elsewhere_is_gone_when_it_has_been_silent(store):
    trial, _ = store.claim(1)
    trial.set_user_attr("owner", {**_me(), "host": "another"})
    assert store.claim(1) is None
    trial.set_user_attr("alive", time.time() - 3600)
    assert store.claim(1) is not None


def test_more_trials_later(store):
    indices = []
    for wanted in (2, 5):
        while claimed := store.claim(wanted):
            indices.append(claimed[1])
            store.study.tell(claimed[0], state=TrialState.FAIL)
    assert indices == [0, 1, 2, 3, 4]


# What becomes of a trial


def setup_for(tmp_path: Path, *options: object) -> tuple[Store, Setup]:
    """A search whose trials are light processes, over what they do; six trials draw five of them."""
    setup = Setup(
        study="light",
        folder=tmp_path / "light",
        storage=str(tmp_path / "study.log"),
        space={"do": Choice({str(option): option for option in options})},
        config={"do": options[0], "seed_everything": 0},
        start={},
        words=("fit", f"--runs={tmp_path}"),
        monitor="val/loss",
        mode="min",
    )
    return Store.opened("light", setup.storage, "min"), setup


def test_trials_that_fail_are_recorded_and_the_search_goes_on(tmp_path, capsys):
    store, setup = setup_for(tmp_path, 0.5, "crash", "killed", "refused", "nan")
    search(store, setup, LIGHT, num_trials=6, prune=True)
    found = {t.params["do"]: t for t in store.trials.values()}
    assert set(found) == {"0.5", "crash", "killed", "refused", "nan"}, "the draw has them all"
    assert found["0.5"].state == TrialState.COMPLETE
    assert found["0.5"].value == 0.5, "the best validation and not the last, 2.0"
    reasons = {name: trial.user_attrs.get("reason") for name, trial in found.items()}
    assert reasons["crash"] == "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert reasons["killed"] == "killed by signal 9"
    assert reasons["refused"] == "model.width: must be a multiple of heads"
    assert found["nan"].value == 1.0, "it was finite once"
    assert len(store.trials) == 6
    said = capsys.readouterr().out
    assert "trial 0 (as it was): val/loss 0.5; do 0.5" in said
    assert "failed, killed by signal 9; do killed" in said
    (run,) = (path for path in tmp_path.glob("run-light-0"))
    assert (run / "output.log").read_text() == "done\n"
    assert json.loads((run / "trial.json").read_text())["val/loss"] == 0.5


def test_a_configuration_that_does_not_start_stops_the_search(tmp_path):
    store, setup = setup_for(tmp_path, "refused", 0.5)
    setup = replace(setup, words=("fit", "--do=refused"))
    for _ in range(2):  # nothing is left behind: the next start says it again
        with pytest.raises(UsageError, match="must be a multiple of heads"):
            search(store, setup, LIGHT, num_trials=3, prune=True)


def test_an_interrupt_ends_the_trial_and_leaves_it_to_be_begun_again(tmp_path):
    store, setup = setup_for(tmp_path, 0.5, 0.3)
    began = time.monotonic()
    # What runs in the background of a shell is started with interrupts ignored, these tests perhaps, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            search(store, replace(setup, words=("fit", "--do=interrupt")), LIGHT, num_trials=1, prune=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 200, "the trial would have gone on for 300 seconds"
    (trial,) = store.trials.values()
    assert trial.state == TrialState.WAITING
    search(store, setup, LIGHT, num_trials=1, prune=True)
    (trial,) = store.trials.values()
    assert trial.value == 0.5


def test_the_same_seed_draws_the_same_whoever_draws(tmp_path):
    drawn = []
    for name, starts in (("once", [6]), ("thrice", [2, 4, 6])):
        store, setup = setup_for(tmp_path / name, *"abcdefgh")
        for wanted in starts:
            search(Store.opened("light", setup.storage, "min"), setup, ["false"], num_trials=wanted, prune=True)
        drawn.append([t.params["do"] for t in store.trials.values()])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 2


def test_a_study_is_not_gone_on_with_under_other_settings(tmp_path):
    store, setup = setup_for(tmp_path, 0.5, 0.6)
    compare(store, setup)
    compare(store, replace(setup, config={**setup.config, "runs_dir": "elsewhere"}))
    with pytest.raises(UsageError, match="other settings") as error:
        compare(store, replace(setup, config={**setup.config, "data": {"batch_size": 3}}))
    assert "batch_size" in str(error.value)


# The end


def test_results_and_confirmation(tmp_path, capsys):
    store, setup = setup_for(tmp_path, 0.5, 0.3)
    search(store, setup, LIGHT, num_trials=2, prune=False)
    while len({t.params["do"] for t in store.trials.values()}) < 2:
        search(store, setup, LIGHT, num_trials=len(store.trials) + 1, prune=False)
    capsys.readouterr()
    write_results(store, setup)
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 15
    best = next(i for i, t in store.trials.items() if t.params["do"] == "0.3")
    assert said.splitlines()[2].split()[:3] == ["1", str(best), "0.3"]
    assert yaml.safe_load((setup.folder / "best.yaml").read_text()) == {"do": "0.3"}
    with (setup.folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["val/loss"]) == 0.5
    assert (setup.folder / "trials.png").read_bytes().startswith(b"\x89PNG")

    confirm(store, setup, LIGHT, 2)
    said = capsys.readouterr().out
    # Seeds 1 and 2 add 0.01 and 0.02: means 0.315 and 0.515, and no overlap.
    assert f"trial {best}: val/loss 0.315 ± 0.007071, 0.31 to 0.32 over 2 seeds" in said
    assert "trial 0 (as it was): val/loss 0.515" in said
    assert "better than the configuration as it was, whichever seeds are compared" in said
    assert "mean of 2 other seeds" in (setup.folder / "best.yaml").read_text()
    confirm(store, setup, LIGHT, 2)
    assert "confirm, seed" not in capsys.readouterr().out, "nothing is run twice"


def test_the_best_of_a_search_is_kept_by_the_worker_that_writes_last(tmp_path):
    store, setup = setup_for(tmp_path, "0.5", "0.3")
    for label, index in (("0.5", 0), ("0.3", 1)):
        trial, _ = store.claim(2)
        trial.set_user_attr("overlay", {"do": label})
        if index == 0:
            store.study.tell(trial, 0.5)

    class Behind(Store):
        """Another worker ends its trial, and writes, after this one has read the store for the first time."""

        reads = 0

        @property
        def trials(self):
            found = super().trials
            Behind.reads += 1
            if Behind.reads == 1:
                store.study.tell(1, 0.3)
                write_results(store, setup)
            return found

    write_results(Behind(store.study), setup)
    assert yaml.safe_load((setup.folder / "best.yaml").read_text()) == {"do": "0.3"}
    with (setup.folder / "trials.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["complete", "complete"]


def test_the_table_has_the_configuration_as_it_was_however_bad(tmp_path):
    store, setup = setup_for(tmp_path, 0.5, 0.3)
    for value in (9.0, *range(8), 3.5):
        trial, _ = store.claim(99)
        store.study.tell(trial, float(value))
    lines = table(store.trials, setup)
    assert len(lines) == 11
    assert lines[-1].split()[:5] == ["10", "0", "(as", "it", "was)"]
    assert lines[2].split()[:3] == ["1", "1", "0"]


# Inside a trial


def reported(tmp_path: Path, others: list[float], prune: bool = True, **options: object):
    study = optuna.create_study(
        study_name="s", storage=Store.opened("s", str(tmp_path / "log"), "min").study._storage, load_if_exists=True
    )
    for value in others:
        study.add_trial(optuna.trial.create_trial(value=value, intermediate_values=dict.fromkeys(range(1, 9), value)))
    trial = study.ask()
    where = {"study": "s", "storage": str(tmp_path / "log"), "number": trial.number, "begins": 2}
    told = {"trial": where, "monitor": "val/loss", "prune": prune, **options}
    trainer = fit(supervised(), TrialReporter(told, lambda: tmp_path), val=loader(shuffle=False), max_epochs=4)
    return trainer, study.get_trials()[trial.number]


def test_every_validation_is_reported_and_none_of_the_sanity_check(tmp_path):
    trainer, trial = reported(tmp_path, [], num_sanity_val_steps=2)
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert trial.intermediate_values[4] == pytest.approx(float(trainer.callback_metrics["val/loss"]))
    assert trial.user_attrs["run"] == str(tmp_path)


def test_a_trial_behind_the_median_ends_early_and_whole(tmp_path):
    trainer, trial = reported(tmp_path, [1e-6] * 5)
    assert list(trial.intermediate_values) == [1, 2], "validation 1 is too early to tell"
    assert trial.user_attrs["pruned"] is True
    assert trainer.state.finished
    trainer, trial = reported(tmp_path, [], prune=False)
    assert len(trial.intermediate_values) == 4


def test_a_value_that_is_not_logged_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="'val/los' is not logged; did you mean 'val/loss'"):
        reported(tmp_path, [], monitor="val/los")


# What is refused before anything runs


SPACE = "model.optimizer.init_args.lr: {log_uniform: [0.01, 1.0]}"


@pytest.mark.parametrize(
    ("space", "words", "said"),
    [
        (SPACE, ["--priority=1", "--num_trial=3"], "did you mean 'num_trials'?"),
        ("model.optimizer.init_args.lrr: {uniform: [0.1, 1.0]}", ["--priority=1"], "did you mean 'lr'?"),
        ("data.batch_size: {choice: [4, 2.5]}", ["--priority=1"], "data.batch_size"),
        (
            "model.optimizer: {choice: {as_it_is: {}, adam: {class_path: torch.optim.Adam, init_args: {momentum: 1}}}}",
            ["--priority=1"],
            "momentum",
        ),
        (SPACE, ["--priority=1"], "must be started from a shell"),
    ],
)
def test_a_mistake_is_told_before_the_first_trial(project, refused, space, words, said):
    project.write("tune/priority_1.yaml", space)
    told = refused("tune", *words)
    assert said in told
    assert "num_trial" in words[-1] or "shell" in told or "tune/priority_1.yaml: " in told


CONFIG = {
    "run_name": "tiny",
    "runs_dir": "runs",
    "checkpoint": {"monitor": "val/loss", "mode": "min"},
    "model": {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}, "loss": {"init_args": {"smoothing": 0.1}}},
}


@pytest.mark.parametrize(
    ("space", "words", "config", "said"),
    [
        (SPACE, [], {}, "tune needs --priority"),
        (SPACE, ["--priority=2"], {}, "there is no search space"),
        ("model.loss.init_args.smoothing: {uniform: [0.0, 0.2]}", ["--priority=1"], {}, "changes what val/loss means"),
        (SPACE, ["--priority=1", "--from=nowhere.yaml"], {}, "there is no file nowhere.yaml"),
        (SPACE, ["--priority=1", "--confirm=1"], {}, "at least 2 seeds"),
        (SPACE, ["--priority=1", "--storage=sqlite:///study.db"], {}, "gives one trial to two workers"),
        (SPACE, ["--priority=1", "--monitor=val/accuracy"], {}, "needs --mode"),
        (SPACE, ["--priority=1"], {"checkpoint": None}, "give --monitor"),
        (SPACE, ["--priority=1"], {"run_name": "a/b"}, "run_name must be"),
    ],
)
def test_what_cannot_be_searched(project, space, words, config, said):
    project.write("tune/priority_1.yaml", space)
    with pytest.raises(UsageError) as error:
        set_up_with(project, words, **config)
    assert said in str(error.value)


def set_up_with(project, words: list[str], **config: object) -> Setup:
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser)
    asked = Tuning.of(parser.parse_args(words).as_dict())
    return set_up(asked, ["tune", *words], lambda _: {**CONFIG, **config}, project.root)


def test_each_stage_starts_from_the_best_of_the_one_before(project, capsys):
    read: list[list[str]] = []

    def config(words: list[str]) -> dict[str, object]:
        read.append(words)
        return CONFIG

    best = project.write("runs/tiny-tune-1/best.yaml", "trainer: {max_epochs: 5}\n")
    project.write("tune/priority_2.yaml", "data.batch_size: {int: [2, 4]}")
    project.write("tune/priority_3.yaml", SPACE)
    words = ["tune", "--priority=2", "--trainer.devices=1"]
    setup = set_up(Tuning(priority=2), words, config, project.root)
    assert setup.words[:4] == ("fit", "--config", str(best), "--trainer.devices=1"), "what the user says comes after"
    assert setup.keys == ["trainer.max_epochs", "data.batch_size"], "best.yaml will hold both stages"
    assert read[-1][-1] == "--data.batch_size=4"
    assert read[-2][-1] == "--data.batch_size=2"
    assert set_up(Tuning(priority=3), words, config, project.root).start == {"trainer": {"max_epochs": 5}}
    assert set_up(Tuning(priority=2, start="none"), words, config, project.root).start == {}


def test_a_space_is_shown_with_what_is_now(project, capsys):
    project.write("tune/priority_2.yaml", NESTED)
    project.run("tune", "--priority=2", "--only_check")
    said = capsys.readouterr().out.splitlines()
    assert '  model.optimizer: as_it_is | sgd | adamw; now "torch.optim.SGD"' in said
    assert "  trainer.max_epochs: 1 to 5; now 2" in said
    assert not (project.root / "runs").exists()
