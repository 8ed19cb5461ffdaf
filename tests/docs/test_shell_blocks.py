"""The shell blocks of the pages, run as they stand; a block that is not run says why in its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BASH = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What the commands of the pages call `my_package`.
MODEL = """
import torch
from lightning.pytorch import LightningModule


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def train_dataloader(self):
        from my_package.data import loaders

        return loaders()
"""
DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset


def loaders():
    inputs = torch.randn(256, 8)
    return DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=32, shuffle=True)
"""

SCRIPT = """
from lightning.pytorch import Trainer
from my_package.model import Net

trainer = Trainer(max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(Net())
"""


def found(page: Path) -> list[tuple[str, str]]:
    """The reason not to run it, or "", and the text, of every shell block."""
    return _BASH.findall(page.read_text(encoding="utf-8"))


RUN = {page: [text for reason, text in found(page) if not reason] for page in PAGES}
RUNNABLE = [page for page in PAGES if RUN[page]]


def test_every_shell_block_is_run_or_says_why_not() -> None:
    reasons = [reason for page in PAGES for reason, _ in found(page) if reason]
    assert all(len(reason.split()) >= 3 for reason in reasons)
    assert RUNNABLE
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(found(page)) == text.count("```bash\n")
        assert len(re.findall("^<!-- not run", text, re.MULTILINE)) == sum(bool(reason) for reason, _ in found(page)), (
            "right above its block"
        )


def workplace(folder: Path) -> dict[str, str]:
    """Put there what a reader of the page has; return the environment."""
    (folder / "firstlight").symlink_to(ROOT)
    package = folder / "my_package"
    package.mkdir()
    for name, text in {"__init__": "", "model": MODEL, "data": DATA}.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    programs = Path(sys.executable).parent
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "COOKIECUTTER", "GIT_"))},
        "HOME": str(folder),
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(["src", str(folder), str(ROOT / "plugins")]),  # as if installed
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.site
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_shell_blocks_run(page: Path, tmp_path: Path) -> None:
    """One after the other, in one shell; Enter answers what asks."""
    environment = workplace(tmp_path)
    script = "".join(RUN[page])
    if "train.py" in script:
        code = next((block for block in _PYTHON.findall(page.read_text("utf-8")) if "trainer.fit(" in block), SCRIPT)
        (tmp_path / "train.py").write_text(code, encoding="utf-8")
    if "first_light" in script and "cookiecutter" not in script:
        script = "cookiecutter ./firstlight --no-input\ncp train.py first-light/ || true\ncd first-light\n" + script
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        input="\n" * 20,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
