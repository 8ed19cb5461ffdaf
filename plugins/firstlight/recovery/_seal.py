"""The seal of a checkpoint: its SHA-256, kept in the file itself.

torch writes a zip archive, which ends with a comment that readers pass over. The seal is that comment, so it comes
into being with the file, in one rename; a copy keeps it, and every ``torch.load`` reads a sealed file like any other.
A digest in a second file could be lost, or be that of a file which a kill kept from arriving.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from firstlight.recovery._errors import DamagedCheckpointError

_ARCHIVE = b"PK\x03\x04"
_END = struct.Struct("<4s16xH")  # the end of a zip archive: its mark, eight numbers, the length of the comment
_END_MARK = b"PK\x05\x06"
_NO_COMMENT = b"\0\0"
_LABEL = b"firstlight sha256 "
_SEAL_LENGTH = len(_LABEL) + 2 * hashlib.sha256().digest_size
_CHUNK = 1 << 22


class SealingWriter:
    """The file that ``torch.save`` writes to: takes the digest on the way.

    torch turns an error of the disk into one of its own, so the first is kept in ``error``.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write and digest."""
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self._digest.update(data)
        return written

    def flush(self) -> None:
        """As torch asks at the end."""

    def seal(self) -> None:
        """Put the digest of all that was written into the archive's comment."""
        self._file.seek(-len(_NO_COMMENT), os.SEEK_END)
        assert self._file.read() == _NO_COMMENT, "torch.save writes an archive without a comment"
        self._file.seek(-len(_NO_COMMENT), os.SEEK_END)
        self._file.write(struct.pack("<H", _SEAL_LENGTH) + _LABEL + self._digest.hexdigest().encode())


def verify_checkpoint(path: str | os.PathLike[str]) -> None:
    """Return if every byte of a checkpoint is what was written.

    A file of ``VerifiedCheckpointIO`` is held against the SHA-256 that it carries; one of ``torch.save`` alone against
    the CRC-32 of each of its records, which ``torch.load`` does not look at.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedCheckpointError: The file is empty, cut off or changed, or is no archive of ``torch.save``.
    """
    path = Path(path)
    with path.open("rb") as file:
        reason = _fault(file, path.stat().st_size)
    if reason:
        raise DamagedCheckpointError(path, reason)


def _fault(file: BinaryIO, size: int) -> str:
    """Return what is wrong, or an empty string."""
    if not size:
        return "it is empty"
    start = file.read(len(_ARCHIVE))
    if start != _ARCHIVE:
        return "it is zeros" if not any(start) else "it is no archive of torch.save (of torch 1.6 or later)"
    end = _END.size + _SEAL_LENGTH
    file.seek(-min(end, size), os.SEEK_END)
    tail = file.read()
    at = tail.rfind(_END_MARK)
    missing = at >= 0 and (len(tail) - at < _END.size or at + _END.size + _END.unpack_from(tail, at)[1] != len(tail))
    if missing:
        return f"it is cut off after {size} bytes"
    if at == 0 and tail[_END.size :].startswith(_LABEL):
        digest = hashlib.sha256()
        for chunk in _chunks(file, size - _SEAL_LENGTH - len(_NO_COMMENT)):
            digest.update(chunk)
        digest.update(_NO_COMMENT)
        whole = digest.hexdigest().encode() == tail[_END.size + len(_LABEL) :]
        return "" if whole else "its SHA-256 is not the one that it was sealed with"
    return _fault_of_archive(file, size)


def _fault_of_archive(file: BinaryIO, size: int) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return f"it is cut off after {size} bytes, or its directory is damaged"
    except Exception as error:  # a damaged directory leads anywhere
        return f"it cannot be read as an archive ({type(error).__name__}: {error})"
    return f"its record {damaged} does not fit its CRC-32" if damaged else ""


def _chunks(file: BinaryIO, size: int) -> Iterator[memoryview]:
    """Yield the first ``size`` bytes, in one buffer used again and again."""
    buffer = memoryview(bytearray(min(_CHUNK, size)))
    file.seek(0)
    while size > 0:
        read = file.readinto(buffer[: min(len(buffer), size)])  # type: ignore[attr-defined]
        if not read:
            return
        yield buffer[:read]
        size -= read
