"""Which checkpoint of a folder is the newest good one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from firstlight._require import said_by
from firstlight.recovery._errors import DamagedCheckpointError
from firstlight.recovery._seal import verify_checkpoint


@dataclass(frozen=True)
class CheckpointSurvey:
    """What a folder holds: the ``newest`` good checkpoint with its ``step``, and why others are ``refused``.

    Older checkpoints than the newest good one are not looked at.
    """

    newest: Path | None
    step: int
    refused: Mapping[Path, str] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint's content; tensors stay on disk until they are used. Its bytes are not verified.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedCheckpointError: It is no archive, or holds more than plain values and tensors.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":
        verify_checkpoint(path)  # says what it is instead
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
        named = f" ({reason.strip()})" if reason else ""
        raise DamagedCheckpointError(path, f"it holds objects other than tensors and plain values{named}") from None
    except Exception as error:  # what is damaged can fail in any way
        verify_checkpoint(path)
        raise DamagedCheckpointError(path, f"torch cannot read it ({said_by(error)[:160]})") from None
    if not isinstance(content, dict):
        raise DamagedCheckpointError(path, f"it holds a {type(content).__name__}, not a checkpoint")
    return content


def survey_checkpoints(folder: str | os.PathLike[str], *, resumable: bool = True) -> CheckpointSurvey:
    """Look for the good checkpoint with the highest step among ``*.ckpt`` in a folder and those below it.

    The step is the one inside: a copied or touched file has a new time but an old step. With ``resumable``,
    checkpoints of weights alone are passed over, and refused where there are no others.
    """
    found: list[tuple[int, bool, Path]] = []
    refused: dict[Path, str] = {}
    weights_alone: dict[Path, str] = {}
    for path in sorted(Path(folder).glob("**/*.ckpt")):
        if not path.is_file():  # a sharded checkpoint is a folder, whose parts torch's own reader knows
            continue
        try:
            content = read_checkpoint(path)
        except (OSError, DamagedCheckpointError) as error:
            refused[path] = error.reason if isinstance(error, DamagedCheckpointError) else said_by(error)
            continue
        if resumable and "optimizer_states" not in content:
            weights_alone[path] = "it holds weights alone, from which no run can go on"
            continue
        # Equal steps: last.ckpt was written after the others and knows which of them is best.
        found.append((int(content.get("global_step", 0)), path.stem.startswith("last"), path))
    for step, _, path in sorted(found, reverse=True):
        try:
            verify_checkpoint(path)
        except DamagedCheckpointError as error:
            refused[path] = error.reason
            continue
        return CheckpointSurvey(path, step, refused)
    return CheckpointSurvey(None, 0, {**refused, **weights_alone})
