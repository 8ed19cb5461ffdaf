"""Make docs/_static/preflight.png: a preflight of a set-up with a fault, its page opened in Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.preflight import run_preflight
from firstlight.schedules import WarmupCosine, lr_lambda

PICTURE = Path(__file__).parents[1] / "docs" / "_static" / "preflight.png"
EPOCHS = 5


class Faulty(LightningModule):
    """A small CNN whose softmax the loss does not want."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Apply the softmax that the loss applies again."""
        return nn.functional.cross_entropy(self.net(batch[0]).softmax(1), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        """Return SGD with a warm-up and a cosine."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        factor = lr_lambda(WarmupCosine(warmup=0.1), total_steps=45 * EPOCHS)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    """Run the preflight and photograph its page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("this needs Chromium")
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target))
    train, val = torch.utils.data.random_split(data, [1437, 360], generator=torch.Generator().manual_seed(0))
    loaders = (DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=32))
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False)
    report = run_preflight(Faulty(), loaders, trainer=trainer)
    report.print()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(report.to_html(), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,1290"]
        target = [f"--user-data-dir={folder}/profile", f"--screenshot={PICTURE}", page.as_uri()]
        subprocess.run([browser, *options, *target], check=True, capture_output=True)
    sys.stdout.write(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
