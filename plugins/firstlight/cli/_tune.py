"""``tune``: a search by priority, on this machine or on many; or the same space written for W&B."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firstlight.cli._errors import UsageError
from firstlight.cli._say import say, short
from firstlight.cli._tune_options import Tuning
from firstlight.cli._tune_setup import set_up, told
from firstlight.cli._tune_sweep import write_sweep
from firstlight.cli._tune_trial import project_command
from firstlight.tracking import redact

_STOPPED = 130


def tune(asked: Tuning, argv: list[str], read: Callable[[list[str]], dict[str, Any]], root: Path) -> int:
    """Run a search to its end and return the code to end with.

    Raises:
        UsageError: If something is wrong with what was given, or Optuna is not installed.
    """
    setup = set_up(asked, argv, read, root)
    if asked.only_check:
        for line in told(setup):
            say(line)
        return 0
    command = project_command(argv)
    if asked.wandb_sweep:
        say(f"sweep: {short(write_sweep(setup, asked, root, command))}")
        return 0
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("tune needs Optuna", "pip install 'firstlight[tune]'")
    from firstlight.cli._tune_confirm import confirm
    from firstlight.cli._tune_results import write_results
    from firstlight.cli._tune_search import compare, search
    from firstlight.cli._tune_store import Store, quiet_optuna

    with quiet_optuna():
        store = Store.opened(setup.study, setup.storage, setup.mode)
        compare(store, setup)
        say(f"tune: {setup.study}, by {setup.monitor} ({setup.mode}), in {redact(short(setup.storage))}")
        try:
            search(store, setup, command, num_trials=asked.num_trials, prune=asked.prune)
            write_results(store, setup)
            if asked.confirm:
                confirm(store, setup, command, asked.confirm)
            else:
                say("Which differences are more than the luck of a seed, only more seeds can tell: --confirm 3")
        except KeyboardInterrupt:
            write_results(store, setup)
            say("stopped; the same command goes on from here")
            return _STOPPED
    return 0
