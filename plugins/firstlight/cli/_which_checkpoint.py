"""Which checkpoint a command means: by a word such as best, or by its path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstlight.cli._checkpoints import Checkpoint, best_in, newest, read, resolve
from firstlight.cli._errors import UsageError
from firstlight.cli._record import changes
from firstlight.cli._say import say, short

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
        """Return the checkpoint to go on from; None if ``auto`` finds none."""
        if name not in ("auto", "last"):
            return self._read(name)
        found = newest(self.runs)
        if found is None and name == "last":
            problem = f"no checkpoint to resume under {short(self.runs)}"
            raise UsageError(problem, "--resume auto starts anew then")
        return found

    def _read(self, name: str) -> Checkpoint:
        path = self.named(name)
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
