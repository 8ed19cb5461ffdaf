"""Python's own help topics, byte by byte, as Lightning wants them."""

from pydoc_data.topics import topics
from typing import Literal

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

Part = Literal["train", "val", "test"]


def load_parts() -> dict[Part, Tensor]:
    """Return the bytes of the text: eight tenths to train on, then one to choose by, then one to test on.

    The topics come with Python and change from version to version: bits a byte can be compared where the
    version is the same. The baseline counts on the text that is there.
    """
    text = bytearray("\n".join(topics[name] for name in sorted(topics)), "utf-8")
    tokens = torch.frombuffer(text, dtype=torch.uint8)
    tenth = len(tokens) // 10
    return {"train": tokens[: 8 * tenth], "val": tokens[8 * tenth : 9 * tenth], "test": tokens[9 * tenth :]}


def windows(tokens: Tensor, context: int) -> Tensor:
    """Cut tokens into rows of ``context + 1``, each beginning with the last token of the row before.

    So every token but the first is predicted once. What is left at the end, less than a row, is dropped.
    """
    return tokens.unfold(0, context + 1, context)


class TopicsDataModule(LightningDataModule):
    """Loaders over windows of the text; in training the windows get longer with the epochs.

    Short windows teach what the last few bytes say, and are cheap in attention; the long ones then add what
    is further away. A batch holds as many tokens at any length, so an epoch has as many steps. The Trainer
    has to ask for a new loader each epoch: ``reload_dataloaders_every_n_epochs: 1``.

    Args:
        batch_size: Windows of full length in a batch; shorter ones are more.
        context: Tokens that the model reads, at most.
        curriculum: Length of the windows in the first epochs, one an epoch; divisors of ``context``.
        num_workers: Loader processes; text in memory is fastest with none.
        seed: Seed of the order of training windows.
    """

    def __init__(
        self,
        *,
        batch_size: int = 16,
        context: int = 128,
        curriculum: tuple[int, ...] = (32, 64),
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for length in curriculum:
            if length < 1 or context % length:
                raise ValueError(f"curriculum: {length} is not a divisor of context={context}")
        self.batch_size = batch_size
        self.context = context
        self.curriculum = tuple(curriculum)
        self.num_workers = num_workers
        self.seed = seed
        self.parts: dict[Part, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Read the text."""
        self.parts = load_parts()

    def _loader(self, part: Part, *, length: int, epoch: int = 0) -> DataLoader[Tensor]:
        return DataLoader(
            windows(self.parts[part], length),  # type: ignore[arg-type]  # a tensor is a dataset of its rows
            batch_size=self.batch_size * self.context // length,
            shuffle=part == "train",
            drop_last=part == "train",
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Windows as long as the epoch is due, shuffled anew for each, the same for the same seed."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        length = [*self.curriculum[epoch:], self.context][0]
        return self._loader("train", length=length, epoch=epoch)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The windows that choose the checkpoint."""
        return self._loader("val", length=self.context)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """The windows that no choice may look at."""
        return self._loader("test", length=self.context)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """The test windows again; put your own here."""
        return self._loader("test", length=self.context)
