"""The space of a search as a sweep of W&B."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from firstlight.cli._errors import UsageError
from firstlight.cli._tune_options import Tuning
from firstlight.cli._tune_setup import Setup
from firstlight.cli._tune_space import Choice, Node, as_text, at, unfolded
from firstlight.tracking import redact_argv

_POINTS = 4
_MOST_POINTS = 10
_MOST_VALUES = 64


def write_sweep(setup: Setup, asked: Tuning, root: Path, command: list[str]) -> Path:
    """Write ``sweeps/priority_N.yaml`` and return its path.

    Raises:
        UsageError: If the project does not log to W&B, or the space has too many values to write down.
    """
    if setup.config.get("wandb") is None:
        raise UsageError(
            "a sweep reads its values from W&B, which is off", "give --wandb.project NAME, or use tune alone"
        )
    program = _program(command, root)
    sweep = {
        "program": program[-1],
        "method": "bayes",
        "metric": {"name": setup.monitor, "goal": "minimize" if setup.mode == "min" else "maximize"},
        "run_cap": asked.num_trials,
        "command": ["${env}", "python", *program, *redact_argv(_from_here(setup.words, root)), "${args}"],
        "parameters": {key: _parameter(key, node, setup) for key, node in setup.space.items()},
    }
    path = root / "sweeps" / f"priority_{asked.priority}.yaml"
    path.parent.mkdir(exist_ok=True)
    head = (
        f"# Written by tune --wandb_sweep from tune/priority_{asked.priority}.yaml.\n"
        f"# `wandb sweep {path.relative_to(root)}` begins it and names the agent to start in the project's folder,\n"
        "# on every machine that is to help.\n"
    )
    path.write_text(head + yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True, width=1000), encoding="utf-8")
    return path


def _program(command: list[str], root: Path) -> list[str]:
    _, *program = command
    if program[0] == "-m":
        return program
    try:
        return [str(Path(program[0]).relative_to(root))]
    except ValueError:
        raise UsageError("agents need a command that works on every machine", "start this one by python -m") from None


def _from_here(words: tuple[str, ...], root: Path) -> list[str]:
    """Return words with paths in the project as seen from it."""
    return [word.removeprefix(f"{root}{os.sep}") for word in words]


def _parameter(key: str, node: Node, setup: Setup) -> dict[str, Any]:
    """Return how W&B says it; of a range inside a choice, which it cannot say, a few numbers."""
    if isinstance(node, Choice):
        found = unfolded(node, _POINTS)
        if len(found) > _MOST_VALUES:
            raise UsageError(f"{key} has more than {_MOST_VALUES} values: too many for a sweep", "use tune alone")
        return {"values": [_value(at(setup.config, key) if value == {} else value) for value in found]}
    if node.step is None:
        return {"distribution": "log_uniform_values" if node.log else "uniform", "min": node.low, "max": node.high}
    if node.log or node.step > 1:
        return {"values": node.points(_MOST_POINTS)}
    return {"distribution": "int_uniform", "min": int(node.low), "max": int(node.high)}


def _value(value: Any) -> Any:
    """Return a value that an agent, which writes what Python prints, puts on a command line as it should be."""
    return value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else as_text(value)
