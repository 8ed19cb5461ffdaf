"""``verify-resume``: is a run that is stopped and goes on the run that was never stopped?"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firstlight._require import some
from firstlight.cli._errors import UsageError
from firstlight.cli._project_process import command_of, own_words, words_of_fit
from firstlight.cli._say import say
from firstlight.cli._verify_causes import causes_of_repeat, causes_of_resume
from firstlight.cli._verify_compare import KINDS, Difference, Names, clocks, differences
from firstlight.cli._verify_legs import Leg, Legs, ended_by_sigterm
from firstlight.cli._verify_options import NAMES, Verifying
from firstlight.cli._verify_words import quiet_words

COMMAND = "verify-resume"

_RANKS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # what starters of many processes set
_CRASHED = 3  # as of a check: the training failed, which says nothing about resumes
_INTERRUPTED = 130
_MOST_CAUSES = 3
_LAST_LINES = 20


def verify_resume(
    asked: Verifying,
    argv: list[str],
    *,
    read: Callable[[list[str]], dict[str, Any]],
    become: Callable[[list[str]], None],
) -> int:
    """Train, stop, resume, compare, say what was found, and return the code to end with.

    Raises:
        UsageError: If the command or the configuration is wrong.
    """
    before, after = words_of_fit(argv, COMMAND, NAMES)
    config = read([*before, "fit", *after])
    if config["trainer"].get("fast_dev_run"):
        raise UsageError("verify-resume needs checkpoints, and trainer.fast_dev_run writes none", "leave it out")
    if "TORCHELASTIC_RUN_ID" in os.environ or any(int(os.environ.get(name, "1")) > 1 for name in _RANKS):
        raise UsageError("verify-resume starts the ranks of each training itself", "start it as one process")
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="firstlight-") as folder:
        words = (*before, "fit", *after, *quiet_words(config, asked.steps, Path(folder)))
        legs = Legs(Path(folder), words, become, command_of(argv), own_words(argv))
        try:
            return _Verification(asked, legs).run()
        except KeyboardInterrupt:
            say("stopped; nothing is left behind")
            return _INTERRUPTED


class _Verification:
    def __init__(self, asked: Verifying, legs: Legs) -> None:
        self.asked, self.legs = asked, legs
        self.results: list[tuple[str, list[Difference]]] = []

    def run(self) -> int:
        whole = self.legs.run("unbroken", last=self.asked.steps, stops=[])
        if not whole.ended:
            return _crashed(whole)
        last = whole.ranks[0]["records"][-1]["step"]
        stops = [step for step in self.asked.stop_at if step < last]
        if len(stops) < len(self.asked.stop_at):
            raise UsageError(f"--stop_at {self.asked.stop_at[-1]}: the run ends after step {last}")
        # From the interpreter on: what hangs on a process, such as the order of a set, is another one there.
        saved = self.legs.run("saved", anew=True, last=last, saves=True, stops=stops)
        if not saved.ended:
            return _crashed(saved)
        return self._compared(whole, saved, last)

    def _compared(self, whole: Leg, again: Leg, last: int) -> int:
        facts = whole.ranks[0]["facts"]
        left_out = clocks(whole.ranks, again.ranks)
        repeat = differences(whole.ranks, again.ranks, leave=left_out)
        if repeat:
            say("verify-resume: not comparable. The same training made twice, with no stop, is not the same:")
            _tell_first(repeat, causes_of_repeat(repeat, facts))
            return 1
        saved = again.ranks[0]["saved"]
        if not saved:
            raise UsageError(
                f"there is no place to stop within {last} steps",
                "inside an epoch of one step, or before a validation, none is exact; give more --steps or --stop_at",
            )
        causes: list[str] = []
        for stop in saved:
            name = f"step {stop['step']}, {'its epoch ends' if stop['epoch_ends'] else 'inside an epoch'}"
            leg = self.legs.run(
                f"resumed-{stop['step']}", more=(f"--resume={stop['path']}",), last=last, begun=stop["step"], stops=[]
            )
            if not leg.ended:
                say(f"verify-resume: the checkpoint of {name}, cannot be resumed: {leg.why}")
                return 1
            found = differences(whole.ranks, leg.ranks, after=stop["place"], leave=left_out)
            self.results.append((name, found))
            causes += causes_of_resume(found, facts, leg.ranks[0]["facts"]) if found else []
        return self._tell(last, left_out, list(dict.fromkeys(causes)))

    def _tell(self, last: int, left_out: Names, causes: list[str]) -> int:
        width = max(len(name) for name, _ in self.results) + 2
        say(f"verify-resume: {last} steps unbroken, and the same stopped and resumed after")
        say(" " * 18 + "".join(name.ljust(width) for name, _ in self.results).rstrip())
        for kind in KINDS:
            cells = [_cell(kind, found) for _, found in self.results]
            say(f"  {kind}".ljust(18) + "".join(cell.ljust(width) for cell in cells).rstrip())
        if left_out:
            names = sorted(name for _, name in left_out)
            say(f"left out, since it differs without a stop too: {some(names)}")
        broken = [(name, found) for name, found in self.results if found]
        for name, found in broken:
            say(f"not exact after {name}:")
            _tell_first(found, causes if found is broken[-1][1] else [])
        if not broken:
            if len(self.results) < 2 and not self.asked.stop_at:
                say("there was one place to stop: no epoch ends within these steps, or none has a second step")
            say("exact: a run that is stopped and goes on is the run that was never stopped")
        return 1 if broken else 0


def _cell(kind: str, found: list[Difference]) -> str:
    return next((f"differ from step {one.step} on" for one in found if one.kind == kind), "equal")


def _tell_first(found: list[Difference], causes: list[str]) -> None:
    for one in found:
        if one.step == found[0].step:
            say(f"  {one.kind} differ first at {one.where}{one}")
    for cause in causes[:_MOST_CAUSES]:
        say(f"likely cause: {cause}")


def _crashed(leg: Leg) -> int:
    """Tell why a training failed that had nothing to do with a resume."""
    if leg.code == UsageError.code:
        raise UsageError(leg.why)
    lines = leg.log.read_text(encoding="utf-8", errors="replace").splitlines()
    sys.stderr.write("\n".join([*lines[-_LAST_LINES:], ""]))
    sys.stderr.write(f"error: the training itself failed, which says nothing about resumes: {leg.why}\n")
    return _CRASHED
