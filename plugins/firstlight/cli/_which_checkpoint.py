"""Which checkpoint a command means: by a word such as best, or by its path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstlight.cli._checkpoints import (
    Checkpoint,
    best_in,
    newest,
    read,
    refusal,
    resolve,
    runs_newest_first,
    survey,
    tell_refused,
    verified,
)
from firstlight.cli._errors import UsageError
from firstlight.cli._record import changes
from firstlight.cli._say import say, short
from firstlight.recovery import DamagedCheckpointError

_MANY = 5
_WIDTH = 160


@dataclass(frozen=True)
class WhichCheckpoint:
    """Looks among ``runs`` for words, and in ``places`` for paths."""

    runs: Path
    places: tuple[Path, ...]

    def named(self, name: str) -> Path:
        """Return the file of that name.

        Raises:
            UsageError: If it is not there.
        """
        return resolve(name, list(self.places), self.runs.parent)

    def to_evaluate(self, name: str, subcommand: str) -> Checkpoint:
        """Return the best or last checkpoint of the newest run, or the one named, and say which it is."""
        if name not in ("best", "last"):
            return self._read(name)
        last = newest(self.runs)
        if last is None:
            problem = f"no checkpoint to {subcommand} under {short(self.runs)}"
            raise UsageError(problem, "run fit first, or give --ckpt_path")
        found = last if name == "last" else best_in(last.path.parent.parent) or last
        say(f"{subcommand}: the {name} checkpoint of the newest run, {found}")
        return found

    def to_resume(self, name: str) -> Checkpoint | None:
        """Return the checkpoint to go on from; None if ``auto`` finds none at all.

        Raises:
            UsageError: If the one that was asked for is damaged or missing, or ``auto`` finds damaged ones alone: to
                start from scratch is then for the reader to decide.
        """
        if name == "auto":
            return self._newest_good()
        if name == "last":
            return self._last()
        path = verified(self.named(name))
        content = read(path)
        if "optimizer_states" not in content:
            raise UsageError(f"{short(path)} holds weights alone, from which no run can go on", "--init_from takes it")
        return Checkpoint(path, int(content["global_step"]))

    def _newest_good(self) -> Checkpoint | None:
        refused: dict[Path, str] = {}
        for run in runs_newest_first(self.runs):
            found = survey(run, resumable=True)
            refused.update(found.refused)
            if found.newest:
                tell_refused(refused)
                return Checkpoint(found.newest, found.step, refused=tuple(found.refused))
        if refused:
            raise UsageError(
                f"no checkpoint under {short(self.runs)} can be resumed",
                *(f"{short(path)}: {reason}" for path, reason in list(refused.items())[:_MANY]),
                "to start anew, leave out --resume",
            )
        return None

    def _last(self) -> Checkpoint:
        for run in runs_newest_first(self.runs):
            found = survey(run, resumable=True)
            # Without a good last.ckpt nobody knows whether a damaged file was the last.
            has_last = found.newest is not None and found.newest.stem.startswith("last")
            doubtful = [path for path in found.refused if path.stem.startswith("last") or not has_last]
            if doubtful:
                raise refusal(DamagedCheckpointError(doubtful[-1], found.refused[doubtful[-1]]), found)
            if found.newest:
                return Checkpoint(found.newest, found.step)
        raise UsageError(f"no checkpoint to resume under {short(self.runs)}", "--resume auto starts anew then")

    def _read(self, name: str) -> Checkpoint:
        path = verified(self.named(name))
        return Checkpoint(path, int(read(path).get("global_step", 0)))


def tell_resume(found: Checkpoint | None, folder: Path | None, runs: Path, config: dict[str, Any]) -> None:
    """Say what goes on, where, and with which settings changed since."""
    if found is None:
        say(f"resume: no checkpoint under {short(runs)} yet, starting a new run")
        return
    say(f"resume: {found}, in {'the same' if folder else 'a new'} run folder")
    if folder:
        different = changes(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), config)
        for line in different[:_MANY]:
            say(f"  changed since: {line if len(line) <= _WIDTH else line[:_WIDTH] + '…'}")
        if len(different) > _MANY:
            say(f"  and {len(different) - _MANY} more")
