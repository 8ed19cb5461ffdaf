"""``tune``: trials one after another, until as many as wanted have run over all workers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from firstlight.cli._errors import UsageError
from firstlight.cli._record import changes
from firstlight.cli._say import say, short
from firstlight.cli._tune_results import told_of
from firstlight.cli._tune_setup import Setup, as_now, identity
from firstlight.cli._tune_space import Node, Range, overlay, values, word
from firstlight.cli._tune_store import BEAT_SECONDS, Store, beat
from firstlight.cli._tune_trial import Ended, run_trial

_MOST_CHANGES = 5


def compare(store: Store, setup: Setup) -> None:
    """See that this study was begun with the same configuration and space.

    Raises:
        UsageError: If it was not: its trials could not be compared with new ones.
    """
    now = json.dumps(identity(setup), sort_keys=True)
    then = store.study.user_attrs.get("identity")
    if then is None:
        store.study.set_user_attr("identity", now)
        return
    # By leaves: a key that a newer version brings, and that is null, changes nothing.
    different = changes(json.loads(then), json.loads(now))
    if different:
        raise UsageError(
            f"{setup.study} was begun with other settings, so new trials could not be compared with it",
            *different[:_MOST_CHANGES],
            f"begin another with --run_name, or remove {short(setup.folder)}",
        )


def search(store: Store, setup: Setup, command: list[str], *, num_trials: int, prune: bool) -> None:
    """Run trials until so many have begun.

    Raises:
        UsageError: If the configuration as it is does not train: no value of the space would help.
    """
    while claimed := store.claim(num_trials):
        trial, index = claimed
        try:
            drawn = _draw(trial, index, setup)
            words = [word(key, value) for key, value in drawn.items()]
            trial.set_user_attr("words", words)
            ended = execute(store, trial, setup, [*command, *setup.words, *words], prune=prune and index > 0)
        except BaseException:
            store.begin_again(trial.number)
            raise
        if index == 0 and ended.code == UsageError.code:
            store.begin_again(trial.number)
            raise UsageError(ended.last_words)
        if finish(store, trial, setup, ended):
            say(told_of(index, store.trials[index], setup))


def _draw(trial: Trial, index: int, setup: Setup) -> dict[str, Any]:
    """Return the values of a trial. The first has none: the best of a search is never worse than what was there."""
    if index == 0:
        now = as_now(setup)
        trial.study.sampler = _Given(now)
        for name in now:
            _suggest(trial, name, setup.space[name])
        return {}
    # By the index: whichever worker draws, and however often it was started anew, the draw is the same.
    seed = int(setup.config.get("seed_everything") or 0)
    trial.study.sampler = TPESampler(seed=(seed * 1_000_003 + index) % 2**32, n_startup_trials=10)
    return values(setup.space, lambda name, node: _suggest(trial, name, node))


def _suggest(trial: Trial, name: str, node: Node) -> Any:
    if not isinstance(node, Range):
        return trial.suggest_categorical(name, list(node.options))
    if node.step is None:
        return trial.suggest_float(name, node.low, node.high, log=node.log)
    return trial.suggest_int(name, int(node.low), int(node.high), step=node.step, log=node.log)


class _Given(BaseSampler):
    """Draws what it was given."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self.given[param_name]


def execute(store: Store, trial: Trial, setup: Setup, command: list[str], *, prune: bool) -> Ended:
    """Run the process of a trial to its end."""
    begins = max(1, int((setup.config.get("trainer") or {}).get("max_epochs") or 0) // 4)
    where = {"study": store.study.study_name, "storage": setup.storage, "number": trial.number, "begins": begins}
    told = {"trial": where, "monitor": setup.monitor, "prune": prune}
    return run_trial(command, told, _log_of(store, trial, setup), lambda: beat(trial), BEAT_SECONDS)


def _log_of(store: Store, trial: Trial, setup: Setup) -> Path:
    return setup.folder / f"{store.study.study_name}-{trial.number:04d}.log"


def finish(store: Store, trial: Trial, setup: Setup, ended: Ended) -> bool:
    """Tell the store what a trial came to; False if it is no longer this worker's."""
    seen = store.study.get_trials(deepcopy=False)[trial.number]
    state, value, reason = _outcome(seen, setup, ended)
    try:
        trial.set_user_attr("seconds", round(ended.seconds, 1))
        if reason:
            trial.set_user_attr("reason", reason.splitlines()[0])
        run = Path(seen.user_attrs["run"]) if "run" in seen.user_attrs else None
        if run is not None and run.is_dir():  # a dry run has taken it away again
            _describe(run, store, trial, seen, setup, state, value)
            _log_of(store, trial, setup).replace(run / "output.log")
        store.study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    except (ValueError, UpdateFinishedTrialError):
        say("a result came too late: another worker has begun this trial again")
        return False
    return True


def _outcome(seen: FrozenTrial, setup: Setup, ended: Ended) -> tuple[TrialState, float, str]:
    if ended.code:
        return TrialState.FAIL, math.nan, ended.reason
    finite = [value for value in seen.intermediate_values.values() if math.isfinite(value)]
    if not finite:
        return TrialState.FAIL, math.nan, f"{setup.monitor} was never finite"
    # The best and not the last: it is what the checkpoint keeps.
    best = min(finite) if setup.mode == "min" else max(finite)
    return (TrialState.PRUNED if seen.user_attrs.get("pruned") else TrialState.COMPLETE), best, ""


def _describe(
    run: Path, store: Store, trial: Trial, seen: FrozenTrial, setup: Setup, state: TrialState, value: float
) -> None:
    """Leave in the run's folder which trial it was, and in the store what of its configuration was searched."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    trial.set_user_attr("overlay", overlay(config, setup.keys))
    said = {
        "study": trial.study.study_name,
        "trial": store.index(trial),
        "state": state.name.lower(),
        setup.monitor: value if math.isfinite(value) else None,
        "drawn": seen.params,
    }
    (run / "trial.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
