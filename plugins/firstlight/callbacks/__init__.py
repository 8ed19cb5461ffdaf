"""Callbacks, one file each. Every one declares its role: observer, actor or probe."""

from firstlight.callbacks._batch_mixing import BatchMixing
from firstlight.callbacks._early_stopping import EarlyStopping
from firstlight.callbacks._generated_samples import GeneratedSamples
from firstlight.callbacks._gradient_clipping import GradientClipping
from firstlight.callbacks._gradient_monitor import GradientMonitor
from firstlight.callbacks._gradient_noise import GradientNoise
from firstlight.callbacks._health_monitor import HealthMonitor
from firstlight.callbacks._learning_rate_scheduler import LearningRateScheduler
from firstlight.callbacks._max_norm import MaxNorm
from firstlight.callbacks._overfit_one_batch import OverfitOneBatch, OverfitResult
from firstlight.callbacks._prediction_samples import PredictionSamples
from firstlight.callbacks._preflight import Preflight
from firstlight.callbacks._progress_bar import ProgressBar
from firstlight.callbacks._run_manifest import RunManifest
from firstlight.callbacks._token_weighted_accumulation import TokenWeightedAccumulation
from firstlight.callbacks._weight_ema import WeightEMA
from firstlight.callbacks._weight_initialization import WeightInitialization

__all__ = [
    "BatchMixing",
    "EarlyStopping",
    "GeneratedSamples",
    "GradientClipping",
    "GradientMonitor",
    "GradientNoise",
    "HealthMonitor",
    "LearningRateScheduler",
    "MaxNorm",
    "OverfitOneBatch",
    "OverfitResult",
    "PredictionSamples",
    "Preflight",
    "ProgressBar",
    "RunManifest",
    "TokenWeightedAccumulation",
    "WeightEMA",
    "WeightInitialization",
]
