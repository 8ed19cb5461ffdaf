"""A help page that fits on a screen or two; the whole list is two thousand lines long."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable
from dataclasses import fields

from firstlight.cli._check_options import Checking
from firstlight.cli._slots import SLOTS
from firstlight.cli._tune_options import names as names_of_tune
from firstlight.cli._verify_options import NAMES as NAMES_OF_VERIFY

_OFTEN_SET = (
    "max_epochs",
    "max_steps",
    "accelerator",
    "devices",
    "strategy",
    "precision",
    "gradient_clip_val",
    "accumulate_grad_batches",
    "limit_train_batches",
    "val_check_interval",
    "log_every_n_steps",
    "deterministic",
    "fast_dev_run",
)
_COLUMN = 36


def help_page(subcommand: str, description: str, actions: Iterable[argparse.Action]) -> str:
    """Return the short page of a subcommand."""
    known = {action.dest: action for action in actions if action.option_strings}
    command = [
        *("resume", "init_from", "ckpt_path", "format", "tolerance"),
        "run_name",
        "runs_dir",
        "seed_everything",
        "cpu_threads",
    ]
    command += (
        [option.name for option in fields(Checking) if option.name not in command] if subcommand == "check" else []
    )
    command += names_of_tune() if subcommand == "tune" else []
    command += NAMES_OF_VERIFY if subcommand == "verify-resume" else ()
    stage = "fit" if subcommand in ("tune", "verify-resume") else subcommand  # what their trainings do
    places = [name for name, slot in SLOTS.items() if name in known and stage in slot.stages]
    parts = [
        f"usage: {subcommand} [-c FILE]... [--KEY=VALUE]...",
        description,
        "Values: the classes' own < configs/default.yaml < each -c FILE in turn < each --KEY=VALUE.",
        _section("this command", [(name, _line(known[name])) for name in command if name in known]),
        _section("places (null switches one off; --PLACE.help lists its keys)", [(n, SLOTS[n].help) for n in places]),
        *(_section(key, [(n, _line(a)) for n, a in known.items() if _is_key_of(key, n)]) for key in ("model", "data")),
        _section("trainer, most used", [(n, _line(known[n])) for k in _OFTEN_SET if (n := f"trainer.{k}") in known]),
        _section("see also", [("print_config", "show the resolved values, and stop"), ("help_all", "every key")]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _is_key_of(key: str, name: str) -> bool:
    return name.startswith(f"{key}.") and not name.endswith(".help")


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([f"{title}:", *(f"  --{name}".ljust(_COLUMN) + text for name, text in rows)]) if rows else ""


def _line(action: argparse.Action) -> str:
    text = " ".join((action.help or "").replace("%%", "%").split())
    text = re.sub(r":\w+:`(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
    text = text.partition(" (type:")[0].partition(". ")[0]
    default = action.default
    shown = isinstance(default, (bool, int, float, str)) and default not in ("", argparse.SUPPRESS)
    return textwrap.shorten(text, 76, placeholder="…") + (f" [{default}]" if shown else "")
