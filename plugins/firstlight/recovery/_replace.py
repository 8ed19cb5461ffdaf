"""A file is replaced whole, or not at all: under a temporary name beside it, on the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: there an open file cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".part"


@contextlib.contextmanager
def replaced(path: Path, *, fsync: bool) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when the block ends well; else nothing has changed.

    The temporary file lies in the same folder: a rename from another file system is a copy, which a kill cuts off.
    """
    part, file = _new_part(path)
    try:
        with file:
            yield file
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    if fsync:
        _sync_folder(path.parent)


def forget_cached(file: BinaryIO) -> None:
    """Sync a file and drop it from memory, so that the next read comes from the disk (where the system can)."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files of processes that were killed; those of living ones are locked and stay."""
    removed = []
    for part in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError), part.open("r+b") as file:
            if _lock(file):
                part.unlink()
                removed.append(part)
    return removed


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
        file = part.open("x+b")
        try:
            mine = _lock(file) and os.fstat(file.fileno()).st_nlink > 0
        except OSError:
            return part, file  # a file system without locks: nobody will take the file for a leftover
        if mine:
            return part, file
        file.close()  # another process swept the folder in this very moment


def _lock(file: BinaryIO) -> bool:
    """Hold the file until it is closed or this process ends: a lock cannot outlive a process, its id can.

    Raises:
        OSError: The file system has no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
