"""The digits as Lightning wants them: images in 0..1, and labels for what measures."""

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from .digits import Part, load_split


class DigitsDataModule(LightningDataModule):
    """Loaders over the fixed split.

    Args:
        batch_size: Images in a batch.
        num_workers: Loader processes; images this small are fastest with none.
        seed: Seed of the order of training images.
    """

    def __init__(self, *, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.datasets: dict[Part, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        """Load the split. For other data: images ``[N, C, H, W]`` and labels ``[N]`` of each part."""
        self.datasets = {
            part: TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
            for part, (images, labels) in load_split().items()
        }

    def _loader(self, part: Part) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            self.datasets[part],
            batch_size=self.batch_size,
            shuffle=part == "train",
            drop_last=part == "train",  # the loss of a batch depends on its size, or its statistics do
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled, the same order for the same seed; what is left over of an epoch comes in another."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The images to choose by."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The images that no choice may look at."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The test images again; put your own here."""
        return self._loader("test")
