"""What is raised for a checkpoint that cannot be trusted, or cannot be kept."""

from __future__ import annotations

from pathlib import Path


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is not what was written: ``path``, ``reason``, and ``instead``, the newest good one beside it."""

    def __init__(self, path: Path, reason: str, instead: str = "") -> None:
        self.path, self.reason, self.instead = path, reason, instead
        super().__init__(f"the checkpoint {path} is refused: {reason}{f'; {instead}' if instead else ''}")


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; what lay in its place is untouched."""
