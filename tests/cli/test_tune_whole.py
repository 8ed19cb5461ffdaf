"""A search as its user sees it: killed, gone on with by two workers, used; and the same space as a sweep of W&B."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from firstlight.cli._tune_store import Store, quiet_optuna
from firstlight.tracking import read_offline_run

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(ROOT / name) for name in ("plugins", "tests"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": PATHS}


@pytest.fixture
def start(project) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Call it with words: it starts the project with them; what still runs at the end of a test is ended."""
    with ExitStack() as stack:

        def run(*words: str) -> subprocess.Popen[str]:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            command = [sys.executable, "-m", "cli.tiny", *words]
            process = subprocess.Popen(command, cwd=project.root, env=ENVIRONMENT, **pipes)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


def said(process: subprocess.Popen[str]) -> str:
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0, text
    return text


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def eventually(what, seconds: float = 300.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.mark.slow
def test_killed_in_the_middle_gone_on_with_by_two_and_used(project, start):
    project.write(
        "tune/priority_1.yaml",
        """
        model.optimizer.init_args.lr: {log_uniform: [0.01, 1.0]}
        data.batch_size: {choice: [4, 8, 16]}
        trainer.max_epochs: {int: [2, 6, 2]}
        """,
    )
    words = ("tune", "--priority", "1", "--num_trials", "3")
    folder = project.root / "runs" / "tiny-tune-1"
    first = start(*words)

    with quiet_optuna():
        eventually((folder / "study.log").exists)
        store = Store.opened("tiny-tune-1", str(folder / "study.log"), "min")
        running = eventually(lambda: [t for i, t in store.trials.items() if i == 1 and len(t.params) == 3])[0]
        (trial,) = eventually(lambda: children(first)) if sys.platform == "linux" else (0,)
        first.kill()
        first.communicate()
        eventually(lambda: not is_alive(trial))

        workers = [start(*words) for _ in range(2)]
        outputs = [said(worker) for worker in workers]
        trials = store.trials

    assert list(trials) == [0, 1, 2]
    assert {t.state for t in trials.values()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert trials[0].number == 0, "what had ended before the kill was not run again"
    assert trials[1].params == running.params, "what was lost was run again, with its values"
    told = Counter(line.split(":")[0] for text in outputs for line in text.splitlines() if line.startswith("trial "))
    assert told == {"trial 1": 1, "trial 2": 1}
    whole = [path.parent for path in folder.glob("*/trial.json")]
    assert sorted(json.loads((run / "trial.json").read_text())["trial"] for run in whole) == [0, 1, 2]
    assert all(
        (run / name).exists() for run in whole for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt")
    )

    # Its best is better or the same, and goes on.
    best = min((t for t in trials.values() if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    assert best.value <= trials[0].value
    cli = project.run("fit", "--config=runs/tiny-tune-1/best.yaml", "--run_name=used")
    assert cli.trainer.max_epochs == best.params["trainer.max_epochs"]
    assert cli.datamodule.batch_size == int(best.params["data.batch_size"])
    assert project.saved(cli.run_folder)["model"]["optimizer"]["init_args"]["lr"] == pytest.approx(
        best.params["model.optimizer.init_args.lr"]
    )
    assert float(cli.trainer.checkpoint_callback.best_model_score) == pytest.approx(best.value, rel=1e-5)


@pytest.mark.slow
def test_a_sweep_of_the_same_space_trains_as_an_agent_would_start_it(project, start):
    pytest.importorskip("wandb")
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    project.write(
        "tune/priority_2.yaml",
        """
        model.optimizer:
          choice:
            as_it_is: {}
            adamw: {class_path: torch.optim.AdamW, init_args: {lr: {log_uniform: [0.0001, 0.01]}}}
        learning_rate: {choice: {none: null, steps: {schedule: {class_path: StepDecay, init_args: {every: 3}}}}}
        data.batch_size: {log_int: [2, 16]}
        model.penalties:
          choice:
            none: []
            l2: [{class_path: firstlight.regularizers.L2Penalty, init_args: {weight: 0.001}}]
        trainer.max_epochs: {int: [1, 3]}
        """,
    )
    project.write("runs/tiny-tune-1/best.yaml", "data: {num_samples: 24}")
    text = said(start("tune", "--priority=2", "--wandb.project=tiny", "--wandb_sweep"))
    assert "starts from the best of priority 1" in text
    sweep = yaml.safe_load((project.root / "sweeps" / "priority_2.yaml").read_text())
    assert str(project.root) not in str(sweep["command"][3:]), "agents run on other machines"
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    rates = [json.loads(value)["init_args"]["lr"] for value in sweep["parameters"]["model.optimizer"]["values"]]
    assert rates == pytest.approx([0.1, 0.0001, 0.000464159, 0.00215443, 0.01], rel=1e-4)

    # Every value of every parameter exists in the parser, in the way in which the agent writes it.
    rows = {key: node.get("values") or [node["min"], node["max"]] for key, node in sweep["parameters"].items()}
    for turn in range(max(map(len, rows.values()))):
        drawn = {key: {"value": row[turn % len(row)]} for key, row in rows.items()}
        flags = create_sweep_command_args({"args": drawn})["args"]
        with pytest.raises(SystemExit) as stopped:
            project.run("fit", *flags, "--print_config")
        assert stopped.value.code == 0

    # And one of them trains: the command line is made by the agent's own code.
    command = create_sweep_command(list(sweep["command"]))
    position = command.index("${args}")
    command = ["/usr/bin/env" if word == "${env}" else word for word in [*command[:position], *flags]]
    command[command.index("python")] = sys.executable
    subprocess.run(command, cwd=project.root, env=ENVIRONMENT, check=True, timeout=600, capture_output=True)
    (run,) = (project.root / "runs" / "tiny-tune-2").glob("2*")
    saved = project.saved(run)
    assert saved["model"]["optimizer"]["class_path"].endswith("AdamW")
    assert saved["data"]["num_samples"] == 24, "the stage before is under it"
    (logged,) = run.glob("wandb/offline-run-*")
    assert read_offline_run(logged).group == "tiny-tune-2"
