"""The named places of a configuration: one callback or logger each, off when null."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

_FIT = frozenset({"fit"})
_STEP = frozenset({"fit", "check"})  # takes part in a training step, which a check repeats
_ASKED = _STEP  # writes files, or watches a key: what a check asks of before they are needed
_EVALUATE = frozenset({"fit", "validate", "test"})
_ALL = frozenset({"fit", "validate", "test", "predict"})


@dataclass(frozen=True)
class Slot:
    """A key of the configuration and what it builds."""

    address: str
    help: str
    stages: frozenset[str]
    on: bool = False

    @property
    def target(self) -> type[Any]:
        """The class itself, imported when it is asked for."""
        module, name = self.address.rsplit(".", 1)
        found: type[Any] = getattr(import_module(module), name)
        return found


# The order is the order in which the callbacks are called.
SLOTS: dict[str, Slot] = {
    "run_manifest": Slot("firstlight.callbacks.RunManifest", "what ran: code, packages, seed, data", _FIT, on=True),
    "exact_resume": Slot(
        "firstlight.recovery.ExactResume", "a resumed run is the unbroken one, bit for bit", _FIT, on=True
    ),
    "rank_watch": Slot("firstlight.recovery.RankWatch", "ends all processes when one hangs, stops or raises", _FIT),
    "preflight": Slot(
        "firstlight.callbacks.Preflight", "can this set-up learn? asked of copies, before it trains", _FIT
    ),
    "weight_initialization": Slot("firstlight.callbacks.WeightInitialization", "how weights start", _STEP),
    "overfit_one_batch": Slot("firstlight.callbacks.OverfitOneBatch", "can one batch be memorized?", _FIT),
    "learning_rate": Slot("firstlight.callbacks.LearningRateScheduler", "warm-up and decay", _STEP),
    "batch_mixing": Slot("firstlight.callbacks.BatchMixing", "MixUp and CutMix on training batches", _STEP),
    "non_finite_guard": Slot(
        "firstlight.recovery.NonFiniteGuard", "a step whose loss or gradient is NaN: skip, roll back or stop", _FIT
    ),
    "gradient_clipping": Slot(
        "firstlight.callbacks.GradientClipping", "by norm, value, percentile or unit; what becomes of NaN", _STEP
    ),
    "gradient_monitor": Slot("firstlight.callbacks.GradientMonitor", "gradient norms and clip rate", _FIT),
    "health_monitor": Slot("firstlight.callbacks.HealthMonitor", "what goes wrong while it trains, said once", _FIT),
    "gradient_noise": Slot("firstlight.callbacks.GradientNoise", "noise on gradients, less with every step", _STEP),
    "max_norm": Slot("firstlight.callbacks.MaxNorm", "no unit's incoming weights above a limit", _STEP),
    "weight_ema": Slot("firstlight.callbacks.WeightEMA", "validate and end with averaged weights", _STEP),
    "early_stopping": Slot("firstlight.callbacks.EarlyStopping", "stop when a metric stalls", _ASKED),
    "prediction_samples": Slot(
        "firstlight.callbacks.PredictionSamples", "predictions as table and picture", frozenset({"fit", "validate"})
    ),
    "generated_samples": Slot(
        "firstlight.callbacks.GeneratedSamples", "what a generative model draws", frozenset({"fit", "validate"})
    ),
    "progress_bar": Slot("firstlight.callbacks.ProgressBar", "progress on a terminal, in a file", _ALL, on=True),
    "checkpoint": Slot(
        "firstlight.cli._checkpoint_callback.RunCheckpoint", "what is kept, and by which metric", _ASKED, on=True
    ),
    "graceful_stop": Slot(
        "firstlight.recovery.GracefulStop", "signals and a time limit end the run after a step, saved", _FIT, on=True
    ),
    "wandb": Slot("firstlight.tracking.SafeWandbLogger", "log to Weights & Biases", _EVALUATE | _ASKED),
}
