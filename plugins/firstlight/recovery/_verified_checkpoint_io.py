"""Checkpoints that cannot be lost: written beside the last one, sealed, synced, renamed; verified when loaded."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import IO, Any, cast, final

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from firstlight.recovery._errors import CheckpointWriteError, DamagedCheckpointError
from firstlight.recovery._replace import forget_cached, remove_leftovers, replaced
from firstlight.recovery._seal import SealingWriter, verify_checkpoint
from firstlight.recovery._survey import survey_checkpoints


@final
class VerifiedCheckpointIO(TorchCheckpointIO):
    """Lightning's way of saving and loading, made safe: ``Trainer(plugins=[VerifiedCheckpointIO()])``.

    *Saving.* A checkpoint is written under a temporary name in its own folder, digested on the way, synced to the
    disk and renamed: a kill or a power cut leaves the old file or the new one, never a part of one. It carries its
    SHA-256 in the comment of its archive and stays an ordinary checkpoint for every other reader. What killed
    processes left behind is removed at the first save into a folder. A full disk or a folder that cannot be written
    ends the run with one error that says what is left.

    *Loading.* A file that is empty, cut off or changed is refused with its reason and the newest good checkpoint
    beside it. Objects other than tensors and plain values are not unpickled unless ``weights_only=False`` is asked for.

    Under DDP the first process writes. Sharded checkpoints (folders, as of FSDP2) are written by torch and read by it:
    they do not pass through here. Addresses with a protocol, such as ``s3://``, are left to Lightning, with a line.

    Args:
        fsync: Wait until the disk has the file. Without it a kill loses nothing, a power cut may.
        read_back: Also read the temporary file again before the rename, and hold it against its digest.

    Raises:
        CheckpointWriteError: From saving, an ``OSError``: the disk is full, the folder cannot be written, and so on.
        DamagedCheckpointError: From loading.
    """

    def __init__(self, *, fsync: bool = True, read_back: bool = False) -> None:
        self.fsync, self.read_back = fsync, read_back
        self._last_good: Path | None = None
        self._swept: set[Path] = set()
        self._told = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Replace the file at ``path`` by a sealed checkpoint, whole or not at all."""
        local = self._local(path)
        if local is None or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            self._sweep(local.parent)
            self._write(checkpoint, local)
        except OSError as error:
            raise self._explained(error, local) from error
        self._last_good = local

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        with replaced(path, fsync=self.fsync) as file:
            writer = SealingWriter(file)
            try:
                torch.save(checkpoint, cast(IO[bytes], writer))
            except BaseException:
                if writer.error is not None:
                    raise writer.error from None
                raise
            writer.seal()
            if self.read_back:
                forget_cached(file)
                verify_checkpoint(file.name)

    def _sweep(self, folder: Path) -> None:
        if folder not in self._swept:
            self._swept.add(folder)
            for path in remove_leftovers(folder):
                rank_zero_info(f"removed {path}, which a process left that was killed while it saved")

    def _explained(self, error: OSError, path: Path) -> CheckpointWriteError:
        good = survey_checkpoints(path.parent).newest or self._last_good
        kept = f"the last good checkpoint is {good}" if good else "there is no other checkpoint in that folder"
        free = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = f" ({shutil.disk_usage(path.parent).free / 1e6:.1f} MB free)"
        reason = f"{os.strerror(error.errno) if error.errno else error}{free}"
        advice = "make room, or give another folder, and go on from there"
        return CheckpointWriteError(error.errno, f"cannot write the checkpoint {path}: {reason}; {kept}; {advice}")

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint's content after its bytes were verified."""
        weights_only = True if weights_only is None else weights_only
        local = self._local(path)
        if local is None or local.is_dir():
            return super().load_checkpoint(path, map_location, weights_only)
        try:
            verify_checkpoint(local)
        except DamagedCheckpointError as error:
            found = survey_checkpoints(local.parent)
            there = f"the newest good one is {found.newest} (step {found.step})" if found.newest else ""
            raise DamagedCheckpointError(local, error.reason, there or "there is no good one beside it") from None
        return super().load_checkpoint(local, map_location, weights_only)

    def _local(self, path: str | Path) -> Path | None:
        """Return the path of a file on this machine; None, and a line once, for one elsewhere."""
        protocol, found, rest = str(path).partition("://")
        if not found:
            return Path(path).absolute()
        if protocol in ("file", "local"):
            return Path(rest).absolute()
        if not self._told:
            self._told = True
            rank_zero_info(f"VerifiedCheckpointIO leaves {protocol}:// to Lightning: neither sealed nor verified")
        return None
