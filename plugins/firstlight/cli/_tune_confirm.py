"""The best trials again with other seeds: is what was found more than luck?"""

from __future__ import annotations

import statistics

from optuna.trial import TrialState

from firstlight.cli._say import say, short
from firstlight.cli._tune_results import number, rank, told_of, write_best
from firstlight.cli._tune_search import execute, finish
from firstlight.cli._tune_setup import Setup
from firstlight.cli._tune_store import Store

_CANDIDATES = 3


def confirm(store: Store, setup: Setup, command: list[str], num_seeds: int) -> None:
    """Run the best trials and the configuration as it was with other seeds, and let their means decide.

    The values of the search itself do not count: the best of many is the luckiest too.
    """
    trials = store.trials
    if any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials.values()):
        say("confirm: other workers are not at the end yet; the same command confirms when they are")
        return
    ranked = rank(trials, setup)
    candidates = list(dict.fromkeys([*ranked[:_CANDIDATES], *(i for i in ranked if i == 0)]))
    if not candidates:
        return
    again = Store.opened(f"{setup.study}-confirm-{'-'.join(map(str, candidates))}", setup.storage, setup.mode)
    first = int(setup.config.get("seed_everything") or 0) + 1
    # Seed by seed: stopped early, every candidate has as many.
    jobs = [(candidate, first + i) for i in range(num_seeds) for candidate in candidates]
    while claimed := again.claim(len(jobs)):
        trial, index = claimed
        candidate, seed = jobs[index]
        words = [*trials[candidate].user_attrs["words"], f"--seed_everything={seed}"]
        try:
            ended = execute(again, trial, setup, [*command, *setup.words, *words], prune=False)
        except BaseException:
            again.begin_again(trial.number)
            raise
        if finish(again, trial, setup, ended):
            say(f"confirm, seed {seed}, {told_of(candidate, again.trials[index], setup)}")
    scores: dict[int, list[float]] = {candidate: [] for candidate in candidates}
    for index, done in again.trials.items():
        if index < len(jobs) and done.state == TrialState.COMPLETE and done.value is not None:
            scores[jobs[index][0]].append(done.value)
    best = _judge(scores, setup, num_seeds)
    if best is not None:
        say(f"best:     {short(write_best(setup, best, trials[best], scores[best]))}")


def _judge(scores: dict[int, list[float]], setup: Setup, num_seeds: int) -> int | None:
    """Say what the seeds say, and return which candidate has the best mean; of equals, what was there."""
    whole = {candidate: values for candidate, values in scores.items() if len(values) == num_seeds}
    for candidate, values in whole.items():
        spread = f"{number(min(values))} to {number(max(values))} over {num_seeds} seeds"
        said = f"{number(statistics.fmean(values))} ± {number(statistics.stdev(values))}, {spread}"
        say(f"trial {candidate}{' (as it was)' if candidate == 0 else ''}: {setup.monitor} {said}")
    if not whole:
        return None
    sign = 1 if setup.mode == "min" else -1
    best = min(whole, key=lambda candidate: (sign * statistics.fmean(whole[candidate]), candidate))
    if best == 0:
        say("Nothing that was found is better than the configuration as it was.")
    elif 0 in whole and _overlap(whole[best], whole[0]):
        say(f"Trial {best} is better on average, but within the luck of the seeds.")
    elif 0 in whole:
        say(f"Trial {best} is better than the configuration as it was, whichever seeds are compared.")
    return best


def _overlap(one: list[float], other: list[float]) -> bool:
    """Whether the ranges meet: for three seeds each, chance alone separates them one time in ten."""
    return max(one) >= min(other) and max(other) >= min(one)
