"""A project whose data come in the order of a set of words: another one in each interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.tiny import TinyData
from torch.utils.data import Subset

from firstlight.cli import FirstlightCLI
from firstlight.modules import SupervisedModule


class SetOrder(TinyData):
    def setup(self, stage: Any) -> None:
        super().setup(stage)
        words = {f"sample {index}" for index in range(len(self.data))}
        self.data = Subset(self.data, [int(word.split()[1]) for word in words])


if __name__ == "__main__":
    FirstlightCLI(SupervisedModule, SetOrder, project_root=Path.cwd())
