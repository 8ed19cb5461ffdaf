"""What representations are worth, and the numbers to beat. ``python -m`` this module prints them.

The measure is the linear probe: logistic regression of the representations of labeled training images,
judged on the test part. The encoder never sees a label.
"""

from collections.abc import Callable

import numpy as np
import torch
from firstlight.initializers import initialize_
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .digits import NUM_CLASSES, load_split
from .model import Encoder

Represent = Callable[[torch.Tensor], torch.Tensor]


def linear_probe(represent: Represent, *, labels_per_class: int | None = None) -> float:
    """Return the test accuracy of a linear classifier of representations, of all labels or of a few."""
    split = load_split()
    (images, labels), (test_images, test_labels) = split["train"], split["test"]
    if labels_per_class is not None:
        places = [np.flatnonzero(labels == label)[:labels_per_class] for label in range(NUM_CLASSES)]
        chosen = np.concatenate(places)
        images, labels = images[chosen], labels[chosen]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(_apply(represent, images), labels)
    return float(probe.score(_apply(represent, test_images), test_labels))


def _apply(represent: Represent, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = represent(torch.from_numpy(images)).flatten(1).float().cpu().numpy()
    return found


class LinearProbe(Callback):
    """Logs in the test what the representation is worth.

    ``test/linear_probe`` is the accuracy with all labels, ``test/linear_probe_10`` with ten of each digit.
    """

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit and judge the probe; the module is in evaluation mode here."""

        def represent(images: torch.Tensor) -> torch.Tensor:
            representations: torch.Tensor = pl_module(images.to(pl_module.device))
            return representations

        pl_module.log("test/linear_probe", linear_probe(represent), sync_dist=True)
        pl_module.log("test/linear_probe_10", linear_probe(represent, labels_per_class=10), sync_dist=True)


if __name__ == "__main__":
    torch.manual_seed(1)
    untrained = Encoder().eval()
    initialize_(untrained)
    for name, represent in (("untrained encoder", untrained), ("raw pixels", torch.nn.Identity())):
        few = linear_probe(represent, labels_per_class=10)
        print(f"{name}: test accuracy, ten labels a digit {few:.4f}, all {linear_probe(represent):.4f}")
