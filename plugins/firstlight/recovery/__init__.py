"""What brings a run through faults: checkpoints that are verified, and stops that lose nothing."""

from firstlight.recovery._errors import CheckpointWriteError, DamagedCheckpointError
from firstlight.recovery._graceful_stop import GracefulStop
from firstlight.recovery._seal import verify_checkpoint
from firstlight.recovery._survey import CheckpointSurvey, read_checkpoint, survey_checkpoints
from firstlight.recovery._verified_checkpoint_io import VerifiedCheckpointIO

__all__ = [
    "CheckpointSurvey",
    "CheckpointWriteError",
    "DamagedCheckpointError",
    "GracefulStop",
    "VerifiedCheckpointIO",
    "read_checkpoint",
    "survey_checkpoints",
    "verify_checkpoint",
]
