"""A mistake is told in a few lines that name the key and the nearest match, ends with code 2 and leaves nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.tiny import Project, TinyData

from firstlight.cli import FirstlightCLI
from firstlight.cli._config_files import ConfigFiles
from firstlight.cli._errors import UsageError
from firstlight.modules import SupervisedModule

ON_THE_COMMAND_LINE = {
    "no_subcommand": ([], "a subcommand is missing"),
    "bad_subcommand": (["fitt"], "did you mean 'fit'?"),
    "stray_word": (["fit", "extra"], "unexpected argument 'extra'"),
    "no_value": (["fit", "--trainer.max_epochs"], "--trainer.max_epochs: expected one argument"),
    "abbreviation": (
        ["fit", "--trainer.max_epoch=3"],
        "trainer.max_epoch is no key of trainer; did you mean 'max_epochs'?",
    ),
    "top_level": (["fit", "--chekpoint.monitor=x"], "did you mean 'checkpoint'?"),
    "type": (["fit", "--trainer.max_epochs=abc"], "trainer.max_epochs must be int or null; got 'abc'"),
    "slot_key": (
        ["fit", "--early_stopping.patince=3"],
        "early_stopping.patince is no key of early_stopping; did you mean 'patience'?",
    ),
    "slot_type": (["fit", "--early_stopping.patience=x"], "early_stopping.patience must be int; got 'x'"),
    "init_args": (["fit", "--model.loss.init_args.lable_smoothing=0"], "did you mean 'label_smoothing'?"),
    "callable_key": (
        ["fit", "--model.optimizer.momentm=0"],
        "model.optimizer.init_args.momentm is no key of torch.optim.SGD; did you mean 'momentum'?",
    ),
    "class": (
        ["fit", "--model.optimizer=Sgd"],
        "model.optimizer.class_path names no known class: 'Sgd'; did you mean 'SGD'?",
    ),
    "schedule": (["fit", "--learning_rate.schedule=WarmupCosin"], "did you mean 'WarmupCosine'?"),
    "learning_rate": (["fit", "--model.optimizer.lr=-1"], "model.optimizer: Invalid learning rate: -1"),
    "constructor": (["fit", "--data.batch_size=0"], "data: batch_size must be one or more; got 0"),
    "accelerator": (["fit", "--trainer.accelerator=gpuu"], "accelerator='gpuu'"),
    "schedule_value": (["fit", "--learning_rate.schedule.floor=7"], "learning_rate: floor must be"),
    "two_modes": (["fit", "--resume=last", "--init_from=x.ckpt"], "--resume and --init_from exclude each other"),
    "nothing_to_resume": (["fit", "--resume=last"], "no checkpoint to resume under"),
    "nothing_to_test": (["test"], "no checkpoint to test under"),
    "no_checkpoint": (["test", "--ckpt_path=nowhere.ckpt"], "checkpoint 'nowhere.ckpt' is missing"),
    "no_weights": (["fit", "--init_from=nowhere.ckpt"], "checkpoint 'nowhere.ckpt' is missing"),
    "url": (["test", "--ckpt_path=https://example.org/a.ckpt"], "must be a file on this machine"),
    "cpu_threads": (["fit", "--cpu_threads=0"], "cpu_threads must be"),
    "run_name": (["fit", "--run_name=../elsewhere"], "run_name must be letters"),
    "resume_nothing": (["fit", "--resume="], "--resume is empty"),  # as of a variable of the shell that is not set
    "resume_no_run": (["fit", "--resume=configs"], "checkpoint 'configs' is missing"),
    "init_no_checkpoint": (["fit", "--init_from=configs/default.yaml"], "is refused as a checkpoint"),
    "runs_dir_file": (["fit", "--runs_dir=configs/default.yaml"], "runs_dir must be a folder, there or to be made;"),
    "seed": (["fit", "--seed_everything=-5"], "seed_everything must be from 0 to 4294967295; got -5"),
    "accumulate": (["fit", "--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches must be 1 or more; got 0"),
    "log_every": (["fit", "--trainer.log_every_n_steps=-1"], "trainer.log_every_n_steps must be 0 or more; got -1"),
    "strategy_name": (["fit", "--trainer.strategy=dpp"], "invalid strategy name: `strategy='dpp'`"),
    "precision": (["fit", "--trainer.precision=12"], "trainer.precision must be 64, 32, 16, "),
    "misfit": (
        ["fit", "--trainer.callbacks+=Linear"],
        "callbacks.class_path names 'torch.nn.Linear', which does not fit",
    ),
    "no_data": (["fit", "--data=null"], "data must hold keys and values; got 'null'"),
    "averages": (["fit", "--weight_ema.decay=1.5"], "weight_ema: decay must be at least 0 and below 1; got 1.5"),
    "two_limits": (
        ["fit", "--gradient_clipping.max_norm=1", "--gradient_clipping.percentile=50"],
        "exactly one of max_norm, max_value, percentile, adaptive; got {'max_norm': 1.0, 'percentile': 50.0}",
    ),
    "time": (["fit", "--graceful_stop.max_time=yesterday"], "max_time must be seconds above zero, or DD:HH:MM:SS; got"),
    "warmup": (["fit", "--learning_rate.schedule.warmup=soon"], "such as '3ep' or '500ba'; got 'soon'"),
    "no_config": (["fit", "--config=configs/defalt.yaml"], "did you mean 'configs/default.yaml'?"),
    "no_config_apart": (["fit", "-c", "nowhere.yaml"], "config file 'nowhere.yaml' is missing"),
}


@pytest.mark.parametrize(("args", "expected"), ON_THE_COMMAND_LINE.values(), ids=ON_THE_COMMAND_LINE)
def test_a_mistake_on_the_command_line(args, expected, refused):
    assert expected in refused(*args)


IN_A_FILE = {
    "top_level": (
        "early_stoping: {patience: 3}",
        "early_stoping is no key of the configuration; did you mean 'early_stopping'?",
    ),
    "trainer": ("trainer: {max_epoch: 3}", "trainer.max_epoch is no key of trainer; did you mean 'max_epochs'?"),
    "type": ("trainer: {max_epochs: abc}", "trainer.max_epochs must be int or null; got 'abc'"),
    "model": ("model: {los: 1}", "model.los is no key of model; did you mean 'loss'?"),
    "init_args": (
        "model: {loss: {init_args: {lable_smoothing: 0}}}",
        "model.loss.init_args.lable_smoothing is no key of firstlight.losses.CrossEntropyLoss; did you mean 'label_sm",
    ),
    "slot_key": ("early_stopping: {patince: 3}", "did you mean 'patience'?"),
    "slot_value": ("checkpoint: {mode: mni}", "checkpoint.mode must be 'min' or 'max'; got 'mni'"),
    "slot_number": ("checkpoint: 3", "checkpoint must be the keys of checkpoint or null; got '3'"),
    "schedule_key": ("learning_rate: {schedule: {init_args: {warmpu: 1}}}", "did you mean 'warmup'?"),
    "class": (
        "model: {loss: {class_path: torch.nn.CrossEntropyLos}}",
        "names no known class: 'torch.nn.CrossEntropyLos'; did you mean 'torch.nn.CrossEntropyLoss'?",
    ),
    "module": ("model: {loss: {class_path: torch.nowhere.CrossEntropyLoss}}", "names no known class: 'torch.nowhere'"),
    "foreign": ("model: {loss: {class_path: nowhere.CrossEntropyLoss}}", "which it may not import"),
    "fetches_code": ("model: {loss: {class_path: torch.hub.load}}", "'torch.hub.load', which it may not import"),
    "nan": ("model: {optimizer: {init_args: {lr: .nan}}}", "model.optimizer.init_args.lr is nan"),
    "nan_in_list": ("trainer: {limit_train_batches: .nan}", "trainer.limit_train_batches is nan"),
    "clip_nothing": ("trainer: {gradient_clip_val: -1}", "trainer.gradient_clip_val must be above 0"),
    "itself": ("a: &a\n  b: *a", "x.yaml:1 is an alias of what it stands in"),
    "twice_in_list": ("trainer: {callbacks: [{class_path: a, class_path: b}]}", "the key 'class_path' a second time"),
    "other_class": (
        "model: {loss: {class_path: torch.optim.SGD}}",
        "model.loss.class_path must be a Module; got 'torch.optim.SGD'",
    ),
    "callback": ("trainer: {callbacks: [{class_path: EarlyStoping}]}", "did you mean 'EarlyStopping'?"),
    "required": ("model: {loss: null}", "model.loss must be given"),
    "metric": (
        "model: {metrics: {a: {class_path: torchmetrics.classification.MulticlassAccuracy, "
        "init_args: {num_classes: -1}}}}",
        "model.metrics: Expected argument `num_classes`",
    ),
    "syntax": ("trainer:\n  - a: b\n c: [", "x.yaml:3 is not valid YAML"),
    "list": ("- a\n- b", "x.yaml must hold keys and values; it holds a list"),
    "infinite": ("model: {optimizer: {init_args: {lr: .inf}}}", "model.optimizer.init_args.lr must be finite; got inf"),
    "exponent": ("trainer: {max_epochs: 1e1}", "trainer.max_epochs must be int or null; got '10.0'"),
    "callback_number": (
        "trainer: {callbacks: 3}",
        "trainer.callbacks must be list[Callback], Callback or null; got '3'",
    ),
    "twice": ("trainer: {max_epochs: 1, max_epochs: 2}", "x.yaml:1 gives the key 'max_epochs' a second time"),
}


@pytest.mark.parametrize(("text", "expected"), IN_A_FILE.values(), ids=IN_A_FILE)
def test_a_mistake_in_a_file(text, expected, project, refused):
    project.write("x.yaml", text)
    said = refused("fit", "-c", "x.yaml")
    assert expected in said
    if "must be given" not in said and "Expected argument" not in said:
        assert "x.yaml" in said


# What is refused before a parser is built: a file takes milliseconds.
IN_THE_FORM = {
    "word": ("hello", "x.yaml must hold keys and values; it holds 'hello'"),
    "null": ("null", "x.yaml must hold keys and values; it holds 'null'"),
    "documents": ("a: 1\n---\nb: 2", "x.yaml:2 is not valid YAML: but found another document"),
    "no_anchor": ("a: *nothing", "x.yaml:1 is not valid YAML: found undefined alias 'nothing'"),
    "tab": ("trainer:\n\tmax_epochs: 3", "x.yaml:2 is not valid YAML"),
    "bytes": ("a: \udcff", "x.yaml is not valid YAML: 'utf-8' codec can't decode"),
    "tag": ("a: !!python/object/apply:os.system [ls]", "x.yaml:1 has the tag '!!python/object/apply:os.system'"),
    "number_as_key": ("1: 2", "x.yaml:1: a key must be a name; got '1'"),
    "no_trainer": ("trainer: null", "x.yaml:1: trainer must hold keys and values; it holds 'null'"),
    "trainer_list": ("trainer: [1, 2]", "x.yaml:1: trainer must hold keys and values; it holds a list"),
    "class_list": ("model: {loss: {class_path: [a, b]}}", "x.yaml:1: class_path must name a class; it holds a list"),
    "class_number": ("model: {loss: {class_path: 3}}", "x.yaml:1: class_path must name a class; it holds '3'"),
    "no_class": ("model: {loss: {class_path: ''}}", "x.yaml:1: class_path must name a class; it holds ''"),
}


@pytest.mark.parametrize(("text", "expected"), IN_THE_FORM.values(), ids=IN_THE_FORM)
def test_a_mistake_in_the_form_of_a_file(text, expected, project):
    project.write("x.yaml", text)
    with pytest.raises(UsageError) as told:
        ConfigFiles(project.root).prepare(["fit", "-c", "x.yaml"], ["fit"])
    assert expected in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_a_mistake_is_located(project, refused):
    project.write("x.yaml", "trainer:\n  max_epochs: 1\nearly_stopping:\n  patince: 3\n")
    assert "in " in (said := refused("fit", "-c", "x.yaml"))
    assert "x.yaml:4" in said
    assert "the argument --early_stopping.patince=3" in refused("fit", "--early_stopping.patince=3")


def test_a_file_that_is_no_checkpoint(project, refused, tmp_path):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    assert "is refused as a checkpoint" in refused("test", f"--ckpt_path={broken}")
    code = tmp_path / "code.ckpt"
    torch.save({"state_dict": {}, "run": Path("x")}, code)
    assert "objects other than tensors" in refused("test", f"--ckpt_path={code}")


def test_weights_of_another_model(project, refused, tmp_path):
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"model.weight": torch.zeros(3, 8), "head.bias": torch.zeros(1)}}, other)
    said = refused("fit", f"--init_from={other}")
    assert "only in the model: model.bias" in said
    assert "only in the file: head.bias" in said
    assert "model.weight is (4, 8) here, (3, 8) there" in said


def test_several_nodes_that_nothing_started(refused, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    said = refused("fit", "--trainer.num_nodes=2")
    assert "trainer.num_nodes is 2, and nothing started this process as one of several nodes" in said
    assert "torchrun" in said


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--trainer.val_check_interval=999", "`val_check_interval` (999) must be less than or equal to the number of"),
        ("--model.loss_weights={taks: 1.0}", "loss_weights names 'taks', but the terms are task; did you mean 'task'?"),
    ],
)
def test_what_only_the_first_batch_can_tell(refused, word, expected):
    """Refused by Lightning or by our modules inside fit: the run folder is taken back."""
    assert expected in refused("fit", word)


@pytest.mark.parametrize("place", ["checkpoint", "early_stopping"])
def test_a_key_that_is_not_logged_is_told_before_the_first_step(project, capsys, place):
    with pytest.raises(SystemExit) as stopped:
        project.run("fit", "--trainer.num_sanity_val_steps=1", f"--{place}.monitor=val/lose")
    said = capsys.readouterr()
    assert re.search(r"warning: \w+ watches 'val/lose', .* logged val/loss.*; did you mean 'val/loss'", said.out)
    assert stopped.value.code == 2
    assert "Traceback" not in said.err
    assert [*project.runs[0].glob("config.yaml")], "what was trained stays"


def test_a_key_that_is_logged_later_is_not_warned_of(project, capsys):
    project.run("fit", "--trainer.num_sanity_val_steps=1", "--early_stopping.monitor=train/loss")
    assert "warning" not in capsys.readouterr().out


def test_a_fault_in_the_projects_own_code_keeps_its_traceback(project):
    class Logs(SupervisedModule):
        def on_train_start(self):
            self.log("a", [1, 2])  # Lightning refuses it, and the line here is what helps

    with pytest.raises(ValueError, match="cannot be logged"):
        FirstlightCLI(Logs, TinyData, project_root=project.root, args=["fit"])

    class Faulty(TinyData):
        def train_dataloader(self):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        FirstlightCLI(project.module, Faulty, project_root=project.root, args=["fit"])


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_code_2(project: Project):
    tests = Path(__file__).parents[1]
    path = f"{tests}:{tests.parent / 'plugins'}"
    done = subprocess.run(
        [sys.executable, "-m", "cli.tiny", "fit", "--trainer.max_epochs=abc"],
        cwd=project.root,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": path, "PATH": ""},
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: trainer.max_epochs must be int or null; got 'abc'")
