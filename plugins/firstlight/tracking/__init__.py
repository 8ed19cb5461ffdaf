"""Where a run is written down: a W&B logger that cannot stop a run, and readers of what was written."""

from firstlight.tracking._confusion_figure import confusion_figure
from firstlight.tracking._metrics_csv import read_metrics
from firstlight.tracking._offline_run import OfflineRun, read_offline_run
from firstlight.tracking._plot_run import plot_run
from firstlight.tracking._redact import redact, redact_argv, redact_diff
from firstlight.tracking._safe_wandb_logger import SafeWandbLogger

__all__ = [
    "OfflineRun",
    "SafeWandbLogger",
    "confusion_figure",
    "plot_run",
    "read_metrics",
    "read_offline_run",
    "redact",
    "redact_argv",
    "redact_diff",
]
