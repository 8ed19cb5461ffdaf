"""Checkpoints on disk: the newest, the best, and weights alone. Nothing is unpickled that torch cannot vouch for."""

from __future__ import annotations

import difflib
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from firstlight.cli._errors import UsageError, nearest
from firstlight.cli._say import say, short


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be read."""

    path: Path
    step: int
    score: str = ""

    def __str__(self) -> str:
        return f"{short(self.path)} (step {self.step}{self.score})"


def read(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content; tensors stay on disk until they are used.

    Raises:
        UsageError: If the file is damaged or holds more than plain values and tensors.
    """
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{short(path)} cannot be read as a checkpoint", "it is damaged, or of torch before 1.6")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
        raise UsageError(f"{short(path)} holds objects other than tensors and plain values", reason.strip()) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UsageError(f"{short(path)} cannot be read as a checkpoint", str(error).splitlines()[0][:160]) from None
    if not isinstance(content, dict):
        raise UsageError(f"{short(path)} cannot be read as a checkpoint", f"it holds a {type(content).__name__}")
    return content


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


def newest(runs: Path) -> Checkpoint | None:
    """Return the checkpoint with the highest step of the newest run that has one.

    By the step stored inside: a copied or touched file has a new time but an old step.
    """
    for run in sorted((r for r in runs.glob("*") if r.is_dir()), reverse=True):
        found = newest_in(run)
        if found:
            return found
    return None


def newest_in(run: Path) -> Checkpoint | None:
    """Return the run's checkpoint with the highest step; damaged files are named and passed over."""
    found = []
    for path in sorted((run / "checkpoints").glob("**/*.ckpt")):
        try:
            step = read(path).get("global_step", 0)
        except UsageError as error:
            say(f"skipped: {str(error).splitlines()[0]}")
            continue
        # Equal steps: last.ckpt was written after the others and knows which of them is best.
        found.append((step, path.stem.startswith("last"), path))
    if not found:
        return None
    step, _, path = max(found)
    return Checkpoint(path, step)


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


def _some(what: str, names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{what}: {', '.join(names[:count])}{more}" if names else ""
