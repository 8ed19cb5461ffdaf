"""One line to the reader, from the first process only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def say(line: str) -> None:
    """Write one line to standard output."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def short(path: str | os.PathLike[str]) -> str:
    """Return the path as seen from the working directory, when it lies below it.

    >>> short(Path.cwd() / "runs" / "digits") == str(Path("runs/digits"))
    True
    """
    path = Path(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
