"""The options of ``tune``, and what of its command line goes to the trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from firstlight.cli._errors import UsageError
from firstlight.cli._project_process import words_of_fit


@dataclass(frozen=True)
class Tuning:
    """What was asked of a search, by the names of its options."""

    priority: int
    num_trials: int = 20
    start: str = "auto"
    storage: str | None = None
    monitor: str | None = None
    mode: str | None = None
    prune: bool = True
    confirm: int = 0
    wandb_sweep: bool = False
    only_check: bool = False

    def __post_init__(self) -> None:
        if self.confirm == 1:
            raise UsageError("--confirm needs at least 2 seeds: one value has no spread")
        if self.storage and self.storage.startswith("sqlite"):
            reason = "Optuna gives one trial to two workers of an SQLite database"
            raise UsageError(f"--storage {self.storage}: {reason}", "leave it out, or name a file, on one machine")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Tuning:
        """Return what was asked for among the values of a parsed command line."""
        if given["priority"] is None:
            raise UsageError("tune needs --priority", "1: learning rate, batch size, epochs; 2: architecture, ...")
        return cls(**{option.name: given[_flag(option.name)] for option in fields(cls)})


def _flag(name: str) -> str:
    return "from" if name == "start" else name  # from is no name in Python


def names() -> list[str]:
    """Return the options as they are written."""
    return [_flag(option.name) for option in fields(Tuning)]


def add_options(parser: Any) -> None:
    """Give a parser the options of a search."""
    say_which = "which space: tune/priority_N.yaml. 1: learning rate, batch size, epochs; 2: architecture, optimizer, "
    parser.add_argument("--priority", type=PositiveInt | None, help=f"{say_which}schedule; 3: regularization")
    counted = "trials of this study, those of other workers and of earlier starts among them"
    parser.add_argument("--num_trials", type=PositiveInt, default=20, help=counted)
    start = "overlay to start from: auto (best.yaml of the priority before), none, or a file"
    parser.add_argument("--from", type=str, default="auto", help=start)
    where = "where trials are kept: a file, or the URL of a database for workers on several machines"
    parser.add_argument("--storage", type=str | None, help=f"{where} (default: study.log in the study's folder)")
    parser.add_argument("--monitor", type=str | None, help="logged value to judge by (default: checkpoint.monitor)")
    better = "which way is better (default: checkpoint.mode)"
    parser.add_argument("--mode", type=Literal["min", "max"] | None, help=better)
    parser.add_argument("--prune", type=bool, default=True, help="stop trials that fall behind the median")
    again = "then run the best three and the default again with so many other seeds"
    parser.add_argument("--confirm", type=NonNegativeInt, default=0, help=again)
    sweep = "only write sweeps/priority_N.yaml, the same space for W&B"
    parser.add_argument("--wandb_sweep", action="store_true", help=sweep)
    parser.add_argument("--only_check", action="store_true", help="only try every key and value of the space")


def for_trials(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return what stands before and after ``tune`` without the options that are the search's own.

    >>> for_trials(["tune", "--priority", "1", "--prune=false", "--trainer.max_epochs", "3", "--wandb_sweep"])
    ([], ['--trainer.max_epochs', '3'])
    """
    return words_of_fit(argv, "tune", names(), flags=("wandb_sweep", "only_check"))
