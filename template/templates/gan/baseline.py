"""What samples are worth, and the number to beat. ``python -m`` this module prints it.

A judge, logistic regression of the real training digits, looks at 1000 samples. A digit counts as among them
if the judge assigns it to at least 20 of them with a confidence of 0.8 or more.
"""

import functools
from typing import Any

import numpy as np
import torch
from firstlight.modules import GANModule
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from .digits import NUM_CLASSES, load_split

NUM_SAMPLES = 1000
CONFIDENCE = 0.8
LEAST_SHARE = 0.02


@functools.cache
def judge() -> LogisticRegression:
    """Return the classifier; it is fitted to real images and never sees a sample."""
    images, labels = load_split()["train"]
    return LogisticRegression(max_iter=2000).fit(images.reshape(len(images), -1), labels)


def coverage(images: NDArray[np.floating]) -> tuple[int, float]:
    """Return how many of the ten digits are among the images, and of what share the judge is sure."""
    confidence = judge().predict_proba(images.reshape(len(images), -1))
    sure = confidence.max(axis=1) >= CONFIDENCE
    share = np.bincount(confidence.argmax(axis=1)[sure], minlength=NUM_CLASSES) / len(images)
    return int((share >= LEAST_SHARE).sum()), float(sure.mean())


class Coverage(Callback):
    """Logs what the judge says of samples in validation and test: ``<stage>/classes`` and ``<stage>/sure``.

    The same normal numbers are drawn each time, so that validations can be compared.
    """

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judge once, while the weights that are validated are in place: at the end the averages are gone."""
        if batch_idx == 0 and not trainer.sanity_checking:
            self._log(pl_module, "val", seed=0)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge other samples than in validation."""
        self._log(pl_module, "test", seed=1)

    def _log(self, pl_module: LightningModule, stage: str, *, seed: int) -> None:
        if not isinstance(pl_module, GANModule):
            raise TypeError(f"Coverage judges a GANModule, not a {type(pl_module).__name__}")
        samples = pl_module.sample(NUM_SAMPLES, generator=torch.Generator().manual_seed(seed))
        classes, sure = coverage(samples.float().cpu().numpy())
        for name, value in (("classes", float(classes)), ("sure", sure)):
            key, shown = f"{stage}/{name}", stage == "val"
            pl_module.log(key, value, on_step=False, on_epoch=True, prog_bar=shown, sync_dist=True)


def baseline_images() -> NDArray[np.float32]:
    """Return samples of a normal distribution with mean and covariance of the real training images."""
    images, _ = load_split()["train"]
    flat = images.reshape(len(images), -1).astype(np.float64)
    normal = np.random.default_rng(0).multivariate_normal(flat.mean(axis=0), np.cov(flat.T), NUM_SAMPLES)
    return normal.clip(0, 1).astype(np.float32)


if __name__ == "__main__":
    real = load_split()["test"][0]
    for name, images in (("real test images", real), ("normal distribution", baseline_images())):
        classes, sure = coverage(images)
        print(f"{name}: share that the judge is sure of {sure:.3f}, digits among them {classes}")
