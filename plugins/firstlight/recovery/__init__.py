"""What brings a run through faults: checkpoints that are verified, stops that lose nothing, resumes that are exact."""

from firstlight.recovery._errors import CheckpointWriteError, DamagedCheckpointError
from firstlight.recovery._exact_resume import ExactResume
from firstlight.recovery._graceful_stop import GracefulStop
from firstlight.recovery._non_finite_guard import NonFiniteGuard
from firstlight.recovery._rank_watch import RankWatch
from firstlight.recovery._seal import verify_checkpoint
from firstlight.recovery._survey import CheckpointSurvey, read_checkpoint, survey_checkpoints
from firstlight.recovery._verified_checkpoint_io import VerifiedCheckpointIO

__all__ = [
    "CheckpointSurvey",
    "CheckpointWriteError",
    "DamagedCheckpointError",
    "ExactResume",
    "GracefulStop",
    "NonFiniteGuard",
    "RankWatch",
    "VerifiedCheckpointIO",
    "read_checkpoint",
    "survey_checkpoints",
    "verify_checkpoint",
]
