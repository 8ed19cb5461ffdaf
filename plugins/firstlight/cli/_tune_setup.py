"""What a search needs to know before its first trial, all of it checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstlight.cli._errors import UsageError
from firstlight.cli._run_folder import new_run_folder
from firstlight.cli._say import say, short
from firstlight.cli._tune_options import Tuning, for_trials
from firstlight.cli._tune_space import Choice, Space, as_it_is, at, read_space, unfolded, word

Read = Callable[[list[str]], dict[str, Any]]  # the words of a command line -> its configuration

_MOST_CHECKED = 24


@dataclass(frozen=True)
class Setup:
    """A search: over what, from where on, judged by what, kept where."""

    study: str
    folder: Path
    storage: str
    space: Space
    config: dict[str, Any]  # as it is before the search, without secrets
    start: dict[str, Any]  # the overlay of the stage before
    words: tuple[str, ...]  # of the command line of every trial, which the values of the trial follow
    monitor: str
    mode: str

    @property
    def keys(self) -> list[str]:
        """What best.yaml tells: the keys of the stages before, and those of the space."""
        return list(dict.fromkeys([*_leaves(self.start), *self.space]))


def set_up(asked: Tuning, argv: list[str], read: Read, root: Path) -> Setup:
    """Read the space and try every key of it on the command line that trials will have.

    Raises:
        UsageError: If something of it is wrong.
    """
    before, after = for_trials(argv)
    file = root / "tune" / f"priority_{asked.priority}.yaml"
    space = read_space(file)
    config = read([*before, "fit", *after])
    name = str(config.get("run_name") or root.name)
    runs = root / Path(config["runs_dir"]).expanduser()
    start = _start(asked, runs, name)
    if start is not None:
        after = ["--config", str(start), *after]
        config = read([*before, "fit", *after])
    study = f"{name}-tune-{asked.priority}"
    monitor, mode = _judge(asked, config, space, file)
    _try(space, file, [*before, "fit", *after], read)
    after = [*after, f"--run_name={study}"]
    try:
        folder = new_run_folder(runs, study).parent
    except ValueError as error:
        raise UsageError(str(error)) from None
    if config.get("wandb") is not None and not config["wandb"].get("group"):
        after.append(f"--wandb.group={study}")
    return Setup(
        study=study,
        folder=folder,
        storage=_storage(asked, folder),
        space=space,
        config=config,
        start=yaml.safe_load(start.read_text(encoding="utf-8")) or {} if start else {},
        words=(*before, "fit", *after),
        monitor=monitor,
        mode=mode,
    )


def _start(asked: Tuning, runs: Path, name: str) -> Path | None:
    """Return the overlay that the search starts from: what the stage before has found, unless told otherwise."""
    if asked.start == "none":
        return None
    if asked.start != "auto":
        path = Path(asked.start)
        if not path.is_file():
            raise UsageError(f"--from: there is no file {asked.start}", "auto and none are words of their own")
        return path.resolve()
    for priority in range(asked.priority - 1, 0, -1):
        path = runs / f"{name}-tune-{priority}" / "best.yaml"
        if path.is_file():
            say(f"tune: starts from the best of priority {priority}, {short(path)}")
            return path
    if asked.priority > 1:
        say(f"tune: nothing was found for priority {asked.priority - 1}: starts from the configuration as it is")
    return None


def _judge(asked: Tuning, config: dict[str, Any], space: Space, file: Path) -> tuple[str, str]:
    checkpoint = config.get("checkpoint") or {}
    monitor = asked.monitor or checkpoint.get("monitor")
    if not monitor:
        raise UsageError("tune needs a value to judge by", "give --monitor, or checkpoint.monitor in the configuration")
    bent = [key for key in space if f"{key}.".startswith(("model.loss.", "model.loss_weights."))]
    if bent and not asked.monitor and monitor.partition("/")[2].split("/")[0] == "loss":
        problem = f"{short(file)}: {bent[0]} changes what {monitor} means, so trials cannot be compared by it"
        raise UsageError(problem, "give --monitor, such as val/accuracy with --mode max")
    mode = asked.mode or (checkpoint.get("mode") if monitor == checkpoint.get("monitor") else None)
    if mode is None:
        raise UsageError(f"--monitor {monitor} needs --mode", "min: lower is better; max: higher is better")
    return monitor, mode


def _try(space: Space, file: Path, words: list[str], read: Read) -> None:
    """Read a command line with every bound and every option once."""
    rows = {key: unfolded(node, 2)[:_MOST_CHECKED] for key, node in space.items()}
    for turn in range(max(len(row) for row in rows.values())):
        # An empty mapping leaves all as it is: nothing to try.
        now = [word(key, row[turn]) for key, row in rows.items() if turn < len(row) and row[turn] != {}]
        try:
            read([*words, *now])
        except UsageError as error:
            raise UsageError(f"{short(file)}: {error}") from None


def _storage(asked: Tuning, folder: Path) -> str:
    where = asked.storage or str(folder / "study.log")
    return where if "://" in where else str(Path(where).absolute())


def _leaves(config: dict[str, Any], key: str = "") -> list[str]:
    """Return the dotted keys of an overlay, but for the classes on the way, which come with what is in them."""
    found: list[str] = []
    for name, value in config.items():
        path = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict) and value:
            found += _leaves(value, path)
        elif name != "class_path" or len(config) == 1:
            found.append(path)
    return found


def identity(setup: Setup) -> dict[str, Any]:
    """Return what must be the same for all trials of a study."""
    own = ("run_name", "runs_dir", "wandb", "cpu_threads", "progress_bar", "run_manifest")
    settings = {key: value for key, value in setup.config.items() if key not in own}
    space = json.loads(json.dumps(setup.space, default=vars))
    return {"monitor": setup.monitor, "mode": setup.mode, "space": space, "configuration": settings}


def as_now(setup: Setup) -> dict[str, Any]:
    """Return the numbers and options of the space that the configuration has already."""
    return as_it_is(setup.space, setup.config)


def told(setup: Setup) -> list[str]:
    """Return a line for each key: what it is now, and what it may be."""
    lines = [f"{setup.study}: {len(setup.space)} keys, judged by {setup.monitor} ({setup.mode})"]
    for key, node in setup.space.items():
        may_be = " | ".join(node.options) if isinstance(node, Choice) else f"{node.low:g} to {node.high:g}"
        lines.append(f"  {key}: {may_be}{_now(at(setup.config, key))}")
    return lines


def _now(value: Any) -> str:
    value = value.get("class_path", value) if isinstance(value, dict) else value
    return f"; now {json.dumps(value)}"
