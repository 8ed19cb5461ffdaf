"""What a search came to: a table, trials.csv, a picture, and best.yaml to go on with."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from firstlight.cli._say import say, short
from firstlight.cli._tune_picture import draw
from firstlight.cli._tune_setup import Setup
from firstlight.cli._tune_store import Store

_MOST_ROWS = 8
_WIDEST_CELL = 14


def write_results(store: Store, setup: Setup) -> None:
    """Write everything into the study's folder, and print the table."""
    setup.folder.mkdir(parents=True, exist_ok=True)
    # A worker that read the store before another's last trial may write after it: whoever writes last has seen all.
    while True:
        trials = store.trials
        written, best = _write(trials, setup)
        if _states(store.trials) == _states(trials):
            break
    for line in table(trials, setup):
        say(line)
    if best is not None:
        say(f"best:     {short(best)}  (fit --config it)")
    say(f"all:      {', '.join(short(path) for path in written)}")


def _write(trials: dict[int, FrozenTrial], setup: Setup) -> tuple[list[Path], Path | None]:
    written = [_write_csv(setup.folder / "trials.csv", trials, setup)]
    ranked = rank(trials, setup)
    if not ranked:
        return written, None
    picture = draw(trials, setup, setup.folder / "trials.png")
    written += [picture] if picture else []
    return written, write_best(setup, ranked[0], trials[ranked[0]])


def _states(trials: dict[int, FrozenTrial]) -> dict[int, TrialState]:
    return {index: trial.state for index, trial in trials.items()}


def rank(trials: dict[int, FrozenTrial], setup: Setup) -> list[int]:
    """Return the indices of complete trials, the best first; of equals the earlier."""
    sign = 1 if setup.mode == "min" else -1
    complete = [index for index, trial in trials.items() if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda index: (sign * _value(trials[index]), index))


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def table(trials: dict[int, FrozenTrial], setup: Setup) -> list[str]:
    """Return the best trials and the one of the configuration as it was, in at most 11 lines."""
    ranked = rank(trials, setup)
    shown = ranked[:_MOST_ROWS]
    if 0 in ranked and 0 not in shown:
        shown.append(0)
    names = short_names(_names(trials.values()))
    head = ["rank", "trial", setup.monitor, *names.values(), "seconds"]
    rows = [
        [
            str(ranked.index(index) + 1),
            f"{index} (as it was)" if index == 0 else str(index),
            number(_value(trials[index])),
            *(number(trials[index].params.get(name, "")) for name in names),
            number(trials[index].user_attrs.get("seconds", "")),
        ]
        for index in shown
    ]
    states = [(s, sum(t.state == s for t in trials.values())) for s in (*_WORDS,)]
    counts = ", ".join(f"{count} {_WORDS[state]}" for state, count in states if count)
    return [f"{setup.study}: {len(trials)} trials, {counts}", *(_aligned([head, *rows]) if rows else [])]


_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "still running",
    TrialState.WAITING: "to be begun again",
}


def _names(trials: Iterable[FrozenTrial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def short_names(names: list[str]) -> dict[str, str]:
    """Return for each dotted name as much of its end as tells it from the others.

    >>> short_names(["data.batch_size", "model.encoder.width", "model.decoder.width"])
    {'data.batch_size': 'batch_size', 'model.encoder.width': 'encoder.width', 'model.decoder.width': 'decoder.width'}
    """
    parts = {name: [part for part in name.split(".") if part != "init_args"] for name in names}
    found = {}
    for name, mine in parts.items():
        others = [other for key, other in parts.items() if key != name]
        lengths = range(1, len(mine) + 1)
        enough = next((n for n in lengths if all(other[-n:] != mine[-n:] for other in others)), len(mine))
        found[name] = ".".join(mine[-enough:])
    return found


def number(value: Any) -> str:
    """Return a value in few characters.

    >>> number(0.123456), number(64), number("adamw")
    ('0.1235', '64', 'adamw')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(rows: list[list[str]]) -> list[str]:
    rows = [[cell if len(cell) <= _WIDEST_CELL else f"{cell[: _WIDEST_CELL - 1]}…" for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def told_of(index: int, trial: FrozenTrial, setup: Setup) -> str:
    """Return one line on a trial that has ended."""
    names = short_names(list(trial.params))
    values = ", ".join(f"{names[name]} {number(value)}" for name, value in trial.params.items())
    said = f"trial {index}{' (as it was)' if index == 0 else ''}: "
    if trial.state == TrialState.COMPLETE:
        said += f"{setup.monitor} {number(_value(trial))}"
    elif trial.state == TrialState.PRUNED:
        said += f"pruned after validation {trial.last_step}"
    else:
        said += f"failed, {trial.user_attrs.get('reason')}"
    return f"{said}; {values or 'nothing drawn'}; {trial.user_attrs.get('seconds', 0.0):.0f} s"


def _write_csv(path: Path, trials: dict[int, FrozenTrial], setup: Setup) -> Path:
    names = _names(trials.values())
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # workers end at the same time
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", setup.monitor, *names, "validations", "run", "reason", "seconds"])
        for index, trial in trials.items():
            told = trial.user_attrs
            value = trial.value if trial.state == TrialState.COMPLETE else ""
            drawn = [trial.params.get(name, "") for name in names]
            rest = [told.get(key, "") for key in ("run", "reason", "seconds")]
            writer.writerow([index, trial.state.name.lower(), value, *drawn, len(trial.intermediate_values), *rest])
    return part.replace(path)


def write_best(setup: Setup, index: int, trial: FrozenTrial, scores: Sequence[float] = ()) -> Path:
    """Write what the best trial had at the keys of the search, to be laid over the configuration."""
    came_to = f"{number(fmean(scores))}, mean of {len(scores)} other seeds" if scores else number(_value(trial))
    said = f"# {setup.study}, trial {index}{' (as it was)' if index == 0 else ''}: {setup.monitor} {came_to}\n"
    path = setup.folder / "best.yaml"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    overlay = trial.user_attrs.get("overlay") or {}
    part.write_text(said + yaml.safe_dump(overlay, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return part.replace(path)
