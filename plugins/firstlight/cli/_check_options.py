"""The options of ``check``, light enough to be read before anything heavy is imported."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from firstlight.cli._errors import UsageError

FORMATS = ("text", "json", "sarif", "junit", "html")


@dataclass(frozen=True)
class Checking:
    """What was asked of a check, by the names of its options."""

    format: str = "text"
    output: str | None = None
    fail_on: str = "error"
    budget: float = 30.0
    seed: int = 0
    baseline: str | None = None
    write_baseline: str | None = None
    all: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.budget < math.inf):
            raise UsageError(f"--budget must be above zero, in seconds; got {self.budget}")
        for option, path in (("--output", self.output), ("--write-baseline", self.write_baseline)):
            if path is not None and not Path(path).parent.is_dir():
                raise UsageError(f"{option}: there is no folder {Path(path).parent}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Checking:
        """Return what was asked for among the values of a parsed command line."""
        return cls(**{option.name: values[option.name] for option in fields(cls)})


def add_options(parser: argparse.ArgumentParser, *, underscores: bool = False) -> None:
    """Give a parser the options of a check; with ``underscores`` also in the spelling of configuration keys."""

    def add(name: str, **settings: Any) -> None:
        aliases = [name.replace("-", "_").replace("__", "--", 1)] if underscores and "-" in name[2:] else []
        parser.add_argument(name, *aliases, **settings)

    add("--format", choices=FORMATS, default="text", help="form of the report (default: text)")
    add("--output", metavar="FILE", default=None, help="write the report to a file, and print the text")
    fail_on = "the least finding that ends with code 1: error, warning or info (default: error)"
    add("--fail-on", choices=("error", "warning", "info"), default="error", help=fail_on)
    add("--budget", type=float, default=30.0, help="seconds; what is not begun by then is left out (default: 30)")
    add("--seed", type=int, default=0, help="of everything that the check draws (default: 0)")
    add("--baseline", metavar="FILE", default=None, help="findings that are known and accepted, each with a reason")
    add("--write-baseline", metavar="FILE", default=None, help="accept what would fail today, for 90 days")
    add("--all", action="store_true", help="print every finding in full")
