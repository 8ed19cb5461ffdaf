"""GeneratedSamples: what a generative model draws, in one picture."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from firstlight._require import require
from firstlight._rng import isolated_rng

_SIDE = 512  # pixels: a picture of small images is enlarged to about so many


@final
class GeneratedSamples(Callback):
    """Shows images that the module draws: a grid of ``num_samples``, from the same random numbers each time.

    It needs a module with a method ``sample(n, generator=...)`` that returns images ``[n, C, H, W]`` with one or three
    channels, as :class:`~firstlight.modules.VAEModule` and :class:`~firstlight.modules.GANModule` have; where there is
    none it says so once and stands aside. Drawn in validation every ``every_n_epochs``, with the weights that are
    validated, and at the end of ``fit``.

    Role: observer.
    Reads: ``sample`` of the module, on all ranks; it draws outside the run's random state.
    Writes: ``samples.png`` in the run folder at the end of ``fit``.
    Logs: picture ``val/samples_picture``, to loggers that have pictures.

    Args:
        num_samples: images in the grid.
        every_n_epochs: how often the picture is logged.
        low, high: values of a pixel that are drawn black and white; what is outside is cut off.
        seed: of the numbers that the samples are made from.

    Raises:
        ValueError: ``num_samples`` or ``every_n_epochs`` below 1, ``low`` not below ``high``.
    """

    role: ClassVar[str] = "observer"

    def __init__(
        self, *, num_samples: int = 64, every_n_epochs: int = 1, low: float = 0.0, high: float = 1.0, seed: int = 0
    ) -> None:
        require(num_samples >= 1, "num_samples", num_samples, "1 or more")
        require(every_n_epochs >= 1, "every_n_epochs", every_n_epochs, "1 or more")
        require(low < high, "low", low, f"below high, {high}")
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self.low = low
        self.high = high
        self.seed = seed
        self._aside = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run."""
        self._aside = False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log a picture at the first batch, if it is time.

        Averaged weights are in place by then, whatever the order of callbacks, and no longer at the end of the epoch.
        """
        if batch_idx or dataloader_idx:
            return
        due = trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if trainer.sanity_checking or not due or not loggers or not _has_matplotlib():
            return
        picture = self._picture(pl_module)
        if picture is not None and trainer.is_global_zero:
            for logger in loggers:
                logger.log_image("val/samples_picture", [picture], step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the picture in the run folder."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks: log_dir is a broadcast
        picture = self._picture(pl_module)
        if picture is None or not trainer.is_global_zero:
            return
        if not _has_matplotlib():
            rank_zero_info("no samples.png: matplotlib is not installed; pip install 'firstlight[viz]'")
            return
        from matplotlib.image import imsave

        folder.mkdir(parents=True, exist_ok=True)
        imsave(folder / "samples.png", picture)

    def _picture(self, pl_module: LightningModule) -> Any:
        if self._aside:
            return None
        images: Any = None
        sample: Any = getattr(pl_module, "sample", None)
        if callable(sample):
            with isolated_rng(seed=self.seed):  # a model may draw more than it is given
                images = sample(self.num_samples, generator=torch.Generator().manual_seed(self.seed))
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
            self._aside = True
            got = f"{tuple(images.shape)} from it" if isinstance(images, Tensor) else "none"
            rank_zero_warn(
                "GeneratedSamples stands aside: it needs a module with a method sample(n, generator=...) that returns "
                f"images [n, C, H, W] with one or three channels; got {got}"
            )
            return None
        return image_grid((images.detach().float().cpu() - self.low) / (self.high - self.low)).numpy()


def image_grid(images: Tensor) -> Tensor:
    """Return one picture of images with values from 0 to 1: rows of equal length, with a line between neighbors.

    Shapes: ``[N, C, H, W]`` to ``[height, width, 3]``, bytes; C is 1 or 3.

    >>> image_grid(torch.ones(3, 1, 400, 300))[:, :, 0].shape  # two rows of two, the last place empty
    torch.Size([803, 603])
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    channels, width = images.shape[1], images.shape[3]
    enlarged = max(1, round((_SIDE / columns - 1) / width))
    pixels = images.clamp(0, 1).mul(255).round().byte().expand(-1, 3 if channels == 1 else channels, -1, -1)
    pixels = pixels.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    # A frame on the right and below each, and on the left and above the whole.
    framed = F.pad(pixels, (0, 1, 0, 1), value=128)
    empty = framed.new_full((rows * columns - len(images), *framed.shape[1:]), 128)
    places = torch.cat([framed, empty]).view(rows, columns, *framed.shape[1:])
    grid = places.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return F.pad(grid, (0, 0, 1, 0, 1, 0), value=128)


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None
