"""Test images placed by t-SNE of their pixels, and of a trained encoder's representations.

Takes the folder of a generated project of the task ``contrastive`` in which ``fit`` has run.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from firstlight.modules import ContrastiveModule

project = Path(sys.argv[1])
(package,) = (path.parent.name for path in project.glob("src/*/model.py"))
sys.path.insert(0, str(project / "src"))
digits = importlib.import_module(f"{package}.digits")
checkpoint = max(project.glob("runs/*/*/checkpoints/epoch*.ckpt"), key=lambda path: path.stat().st_mtime)
module = ContrastiveModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
images, labels = map(torch.from_numpy, digits.load_split()["test"])
with torch.no_grad():
    spaces = {"pixels": images.flatten(1), "representations learned without labels": module(images)}

figure = Figure(figsize=(7.0, 3.2), dpi=100, layout="constrained")
for panel, (title, space) in zip(figure.subplots(1, 2), spaces.items(), strict=True):
    x, y = TSNE(random_state=0).fit_transform(space.numpy()).T
    for digit in range(10):
        chosen = (labels == digit).numpy()
        panel.scatter(x[chosen], y[chosen], s=14, marker=f"${digit}$", color=f"C{digit}", linewidths=0.3)
    panel.set_title(title, fontsize=9)
    panel.set(xticks=[], yticks=[])
figure.savefig(Path(__file__).with_suffix(".png"), metadata={"Software": None})
