"""Where a run lives: ``<runs_dir>/<run_name>/<id>``."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from firstlight._require import require

_VARIABLE = "FIRSTLIGHT_RUN_DIR"


def new_run_folder(runs_dir: Path, run_name: str) -> Path:
    """Return the path of a new run folder, without making it; names sort by time.

    Raises:
        ValueError: If the run's name could leave ``runs_dir`` or is no file name everywhere.
    """
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", run_name) is not None
    require(plain, "run_name", run_name, "letters, digits, '.', '_' and '-', at most 80, the first a letter or digit")
    shared = os.environ.get(_VARIABLE)
    if shared and getattr(rank_zero_only, "rank", 0) != 0:
        return Path(shared)  # a child of Lightning's launcher: the first process has chosen already
    now = datetime.now(timezone.utc)
    return runs_dir / run_name / f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(2)}"


@contextmanager
def shared_with_children(folder: Path) -> Iterator[None]:
    """Tell the processes that Lightning starts meanwhile which run folder is theirs."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE)
        if before is not None:
            os.environ[_VARIABLE] = before


def run_folder_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None for one that lies elsewhere."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None
