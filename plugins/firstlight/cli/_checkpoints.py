"""Checkpoints on disk: the newest, the best, and weights alone. Nothing is unpickled that torch cannot vouch for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from firstlight._require import some
from firstlight.cli._errors import UsageError, nearest
from firstlight.cli._say import say, short
from firstlight.recovery import (
    CheckpointSurvey,
    DamagedCheckpointError,
    read_checkpoint,
    survey_checkpoints,
    verify_checkpoint,
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be read."""

    path: Path
    step: int
    score: str = ""
    refused: tuple[Path, ...] = ()  # newer ones that were passed over

    def __str__(self) -> str:
        return f"{short(self.path)} (step {self.step}{self.score})"


def read(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content; tensors stay on disk until they are used.

    Raises:
        UsageError: If the file is damaged or holds more than plain values and tensors.
    """
    try:
        return read_checkpoint(path)
    except DamagedCheckpointError as error:
        raise refusal(error) from None


def verified(path: Path) -> Path:
    """Return the path of a checkpoint whose every byte is what was written.

    Raises:
        UsageError: If the file is damaged, naming the newest good one beside it.
    """
    try:
        verify_checkpoint(path)
    except DamagedCheckpointError as error:
        raise refusal(error, survey_checkpoints(path.parent)) from None
    return path


def refusal(error: DamagedCheckpointError, found: CheckpointSurvey | None = None) -> UsageError:
    """Return the error for the reader: the file, the reason, and what there is instead."""
    instead = error.instead
    if found is not None:
        instead = "there is no good one beside it"
        if found.newest:
            instead = f"the newest good one is {Checkpoint(found.newest, found.step)}"
    return UsageError(f"{short(error.path)} is refused as a checkpoint", error.reason, instead)


def resolve(name: str, places: list[Path], runs_dir: Path) -> Path:
    """Return the path of a checkpoint that was asked for by name.

    Raises:
        UsageError: For an address on the network, and for a file that is not there.
    """
    if "://" in name or name.startswith(("registry", "hpc")):
        raise UsageError(
            f"checkpoint {name!r} must be a file on this machine", "fetch it first, from a source you trust"
        )
    for place in places:
        candidate = place / Path(name).expanduser()
        if candidate.is_file():
            return candidate.resolve()
    known = sorted(short(p) for p in runs_dir.glob("**/*.ckpt"))
    there = "; ".join(_closest(name, known)) or f"none under {short(runs_dir)}"
    raise UsageError(f"checkpoint {name!r} is missing{nearest(name, known)}", f"there is: {there}")


def _closest(name: str, known: list[str], count: int = 3) -> list[str]:
    return difflib.get_close_matches(name, known, n=count, cutoff=0.0)


def runs_newest_first(runs: Path) -> list[Path]:
    """Return the run folders, whose names sort by time."""
    return sorted((run for run in runs.glob("*") if run.is_dir()), reverse=True)


def survey(run: Path, *, resumable: bool = False) -> CheckpointSurvey:
    """Return what a run keeps, and what of it is refused."""
    return survey_checkpoints(run / "checkpoints", resumable=resumable)


def newest(runs: Path) -> Checkpoint | None:
    """Return the good checkpoint with the highest step of the newest run that has one; refused ones are named."""
    for run in runs_newest_first(runs):
        found = newest_in(run)
        if found:
            return found
    return None


def newest_in(run: Path) -> Checkpoint | None:
    """Return the run's good checkpoint with the highest step; refused ones are named."""
    found = survey(run)
    tell_refused(found.refused)
    return Checkpoint(found.newest, found.step) if found.newest else None


def tell_refused(refused: Mapping[Path, str], most: int = 5) -> None:
    """Say which files were passed over, and why."""
    for path, reason in list(refused.items())[:most]:
        say(f"refused: {short(path)}: {reason}")
    if len(refused) > most:
        say(f"refused: {len(refused) - most} more")


def best_in(run: Path) -> Checkpoint | None:
    """Return the best checkpoint of a run by what it monitored; the newest if it monitored nothing."""
    last = newest_in(run)
    if last is None:
        return None
    for key, state in read(last.path).get("callbacks", {}).items():
        if "Checkpoint" not in key or not state.get("best_model_path"):
            continue
        # By its name: the run folder may have been moved since.
        path = last.path.parent / Path(state["best_model_path"]).name
        score = state.get("best_model_score")
        if path.is_file() and state.get("monitor") and score is not None:
            return Checkpoint(path, int(read(path)["global_step"]), f", {state['monitor']} {float(score):.4g}")
    return last


def load_weights(module: LightningModule, path: Path) -> None:
    """Load weights alone into a module that has just been built.

    Raises:
        UsageError: If names or shapes differ, listing the first of them.
    """
    content = read(path)
    given: dict[str, Any] = content.get("state_dict", content)
    own = module.state_dict()
    missing = sorted(own.keys() - given.keys())
    unexpected = sorted(given.keys() - own.keys())
    shapes = [
        f"{k} is {tuple(own[k].shape)} here, {tuple(given[k].shape)} there"
        for k in sorted(own.keys() & given.keys())
        if getattr(own[k], "shape", None) != getattr(given[k], "shape", None)
    ]
    if missing or unexpected or shapes:
        raise UsageError(
            f"{short(path)} does not fit this model",
            _some("only in the model", missing),
            _some("only in the file", unexpected),
            _some("other shape", shapes),
            "build the same model, or leave out --init_from",
        )
    module.load_state_dict(given)


def _some(what: str, names: list[str]) -> str:
    return f"{what}: {some(names)}" if names else ""
