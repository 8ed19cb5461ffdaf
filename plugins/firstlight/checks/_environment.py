"""FL0xx: what surrounds a run: folders, disk, saved state, monitored keys, workers, tracker, packages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import final

from firstlight._require import some
from firstlight.checks._check import Check, Evidence, Finding, Severity

_STOLEN = "compromised: importing it runs a program that steals credentials (GHSA-w37p-236h-pfx3)"
_NAMED = "named by that advisory on lightning (GHSA-w37p-236h-pfx3), although its maintainers say it was not touched"
_UNSAFE = "a checkpoint can run code although it is loaded with weights_only=True (CVE-2026-58659)"

KNOWN_BAD = (
    ("lightning", "2.6.2", "2.6.3", _STOLEN),
    ("pytorch-lightning", "2.6.2", "2.6.3", _NAMED),
    ("lightning", "0", "2.6.5", _UNSAFE),
)
"""Releases that nobody should run: package, first and last version, reason. The first row that fits is told."""


@final
class PathUnwritable(Check):
    """A folder that the run will write into cannot be written.

    Rule: in the nearest folder that exists of each output (checkpoints, loggers) a small file is made and removed; an
    error where that fails, or where a file stands in the way of a folder.
    Evidence: Lightning 2.6 finds a read-only folder of checkpoints at the first save, after a whole epoch.
    Known false alarms: a folder that is mounted only after the check. Addresses such as ``s3://`` are not asked.
    """

    code, name, title, rank = "FL001", "path_unwritable", "outputs can be written", 900
    needs = ("environment/outputs",)
    why = "The first save or log entry ends the run, and what was trained until then is lost."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        barred: dict[str, list[tuple[str, str]]] = {}
        for what, path, problem in evidence["environment/outputs"]:
            if problem:
                barred.setdefault(problem, []).append((what, path))
        for problem, outputs in barred.items():
            yield self.finding(
                Severity.ERROR,
                value=problem,
                threshold="a folder that can be written",
                where=outputs[0][1],
                message=f"{some([what for what, _ in outputs])} cannot be written: {problem}",
                advice="give another folder, or the right to write into this one",
            )


@final
class NoRoom(Check):
    """The checkpoints to come do not fit on the disk.

    Rule: the bytes of one checkpoint, as the state of a copy is after one step, times those that lie on the disk at one
    moment (the best, the last, the one being written), against what is free; an error above it, a warning above half.
    ``save_top_k=-1`` counts all saves of the planned run; if the run may stop early, a warning at most.
    Evidence: Lightning 2.6 ends the run when a save meets a full disk; ``save_top_k=1, save_last=True`` has three files
    there at once.
    Known false alarms: a disk that is emptied meanwhile. State that grows later and quotas are not seen.
    """

    code, name, title, rank = "FL002", "no_room", "checkpoints fit on the disk", 901
    needs = ("environment/room",)
    why = "A save on a full disk ends the run."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        for room in evidence["environment/room"]:
            needed, free = room["needed"], room["free"]
            if 2 * needed > free:
                tight = needed <= free
                yield self.finding(
                    Severity.WARNING if tight or room["at_most"] else Severity.ERROR,
                    value=float(needed),
                    threshold=float(free),
                    where=room["folder"],
                    message=f"{room['count']} checkpoint(s), the largest of {_bytes(room['size'])}, take "
                    f"{_bytes(needed)}; {_bytes(free)} are free",
                    advice="keep fewer (save_top_k), make room, or save elsewhere",
                )


@final
class StateLost(Check):
    """State that would not come back from a checkpoint.

    Rule: hyperparameters, states of module, optimizers, callbacks and data, as a copy has them after one step, are
    saved in memory and loaded with ``weights_only=True``; what cannot be saved is an error, what cannot be loaded a
    warning.
    Tensors are emptied before: the question is of kinds, not of bytes.
    Evidence: a lambda or a lock in a state cannot be saved; a Path, a NumPy number, a timedelta or an ``nn.Module``
    cannot be loaded, and then nothing else of the file either. Lightning itself leaves lambdas out of hyperparameters.
    Known false alarms: classes that the loading program allows by ``torch.serialization.add_safe_globals``.
    """

    code, name, title, rank = "FL003", "state_lost", "saved state can be loaded", 902
    needs = ("environment/lost",)
    why = "A checkpoint that cannot be written ends the run; one that cannot be loaded is no checkpoint."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        for done, severity in (("saved", Severity.ERROR), ("loaded with weights_only=True", Severity.WARNING)):
            lost = [(key, kind) for key, kind, stage in evidence["environment/lost"] if done.startswith(stage)]
            if lost:
                yield self.finding(
                    severity,
                    value=float(len(lost)),
                    threshold=0.0,
                    where=lost[0][0],
                    message=f"{some([f'{key} ({kind})' for key, kind in lost])} cannot be {done}",
                    advice="keep plain values and tensors there: str(path), number.item(), a class path; or leave it "
                    "out by save_hyperparameters(ignore=[...])",
                )


@final
class MonitorMissing(Check):
    """A callback watches a key that is not logged.

    Rule: a copy takes one step and validates on two batches; a key that ModelCheckpoint or EarlyStopping watch and that
    is not among the metrics then is an error, a warning where the callback looks less often than after each epoch.
    Not asked where callbacks of the user's own, or no validation data, leave it open who logs what.
    Evidence: Lightning 2.6 raises at the end of the first epoch.
    Known false alarms: keys that are logged only in batches after the second.
    """

    code, name, title, rank = "FL004", "monitor_missing", "monitored keys are logged", 903
    needs = ("environment/unlogged",)
    why = "The callback finds nothing to judge by, and ends the run after its first epoch."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        known = sorted(evidence.get("environment/logged", {}))
        for callback, key, sure in evidence["environment/unlogged"]:
            yield self.finding(
                Severity.ERROR if sure else Severity.WARNING,
                value=key,
                threshold="a logged key",
                where=callback,
                message=f"{callback} watches {key!r}, which is not logged",
                advice=f"watch one of {', '.join(known)}" if known else "log it in validation_step",
            )


@final
class MonitorUnsynced(Check):
    """A watched key differs between processes.

    Rule: several processes, and a key that ModelCheckpoint or EarlyStopping watch is logged as a number, without
    ``sync_dist=True``; a warning.
    Evidence: two processes that logged 0 and 1 had best scores of 0 and 1.
    Known false alarms: a value that the module has reduced over the processes itself.
    """

    code, name, title, rank = "FL005", "monitor_unsynced", "monitored keys are synced", 904
    needs = ("environment/unsynced",)
    why = "Each process sees the value of its own part of the data: which checkpoint is best depends on the process."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        for callback, key in evidence["environment/unsynced"]:
            yield self.finding(
                Severity.WARNING,
                value=key,
                threshold="sync_dist=True",
                where=callback,
                message=f"{callback} watches {key!r}, which each process logs for itself",
                advice="log it with sync_dist=True, or log a torchmetrics metric",
            )


@final
class EqualDraws(Check):
    """Workers of a loader, or processes, draw the same random numbers.

    Rule: one sample, fetched 32 times by each of two real workers, comes out in the same sequence in both, and not the
    same each time; a warning. With several processes: samples are random, and their workers were seeded alike in all.
    Evidence: torch seeds torch, Python and NumPy apart in each worker, and such data sets are silent; a generator that
    the data set made itself is copied into all of them. ``seed_everything(workers=False)`` seeds all processes alike.
    Known false alarms: none known; a sequence of fewer than three exceptions in 32 draws is taken for chance.
    """

    code, name, title, rank = "FL006", "equal_draws", "workers draw apart", 905
    needs = ("environment/equal_draws",)
    why = "Augmentation is the same again and again: there is less data than it seems."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        if among := evidence["environment/equal_draws"]:
            own = "draw from torch's generator, or seed the data set's own by torch.initial_seed() in a worker_init_fn"
            yield self.finding(
                Severity.WARNING,
                value=among,
                threshold="different draws",
                where="train_dataloader",
                message=f"random samples come out alike in {among}",
                advice="call seed_everything(seed, workers=True)" if among == "all processes" else own,
            )


@final
class TrackerOffline(Check):
    """W&B is asked for, and there is no key to log with.

    Rule: a W&B logger, no offline mode, and no key in the environment or in netrc; a warning with Lightning's logger, a
    fact with SafeWandbLogger, which goes on offline. No network is asked.
    Evidence: wandb 0.31 raises "No API key configured" before the first step, and asks and waits on a terminal.
    Known false alarms: a key that is typed in when wandb asks.
    """

    code, name, title, rank = "FL007", "tracker_offline", "the tracker can log in", 906
    needs = ("environment/tracker",)
    why = "What is not uploaded is not seen by others, and a question that nobody answers holds the run."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        for logger, safe in evidence["environment/tracker"]:
            comes = "the run is written offline" if safe else "wandb ends the run, or asks on the terminal and waits"
            yield self.finding(
                Severity.INFO if safe else Severity.WARNING,
                value="no key",
                threshold="a key or an offline mode",
                where=logger,
                message=f"{logger} finds no API key, in WANDB_API_KEY or netrc: {comes}",
                advice="call `wandb login` once, or set WANDB_MODE=offline and upload with `wandb sync` later",
            )


@final
class BadRelease(Check):
    """An installed package is a release that nobody should run.

    Rule: name and version are in a short table of releases that steal credentials or run foreign code; an error, and a
    warning where advisories and maintainers disagree.
    Evidence: the advisories that the finding names.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL008", "bad_release", "no release is known as bad", 907
    needs = ("environment/packages",)
    why = "The run, or whoever loads its checkpoints, is open to strangers."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        for package, version in evidence["environment/packages"].items():
            fits = (bad for name, first, last, bad in KNOWN_BAD if name == package and _between(first, version, last))
            if reason := next(fits, ""):
                renew = "; and renew every key that this machine has seen" if reason == _STOLEN else ""
                yield self.finding(
                    Severity.WARNING if reason == _NAMED else Severity.ERROR,
                    value=version,
                    threshold="another release",
                    where=package,
                    message=f"{package} {version} is installed: {reason}",
                    advice=f"pip install --upgrade {package}{renew}",
                )


def _between(first: str, version: str, last: str) -> bool:
    """Return whether a version lies between two others, by its first three numbers.

    >>> _between("2.6.2", "2.6.10", "2.6.11"), _between("0", "2.6.6.dev0", "2.6.5")
    (True, False)
    """
    low, given, high = (tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (first, version, last))
    return low <= given <= high


def _bytes(number: float) -> str:
    """Return a size as one reads it.

    >>> _bytes(999), _bytes(1_234_000), _bytes(5e12)
    ('999 B', '1.2 MB', '5.0 TB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
