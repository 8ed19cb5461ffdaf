"""The model card: what the records of a run say, in words; what its author says stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli.tiny import Project, TinyData

from firstlight.cli import FirstlightCLI
from firstlight.modules import SupervisedModule
from firstlight.tracking import read_metrics


class KnownData(TinyData):
    """Data with a fingerprint, and a place on this machine."""

    def __init__(self, root: str = "/home/somebody/data/set.bin", batch_size: int = 8, api_key: str = "none") -> None:
        super().__init__(batch_size, api_key=api_key)
        self.root = root

    def fingerprint(self) -> dict[str, str]:
        return {"sha256": "12ab", "file": self.root}


def run(project: Project, *words: str) -> FirstlightCLI:
    return FirstlightCLI(SupervisedModule, KnownData, project_root=project.root, args=list(words))


def table(card: str) -> dict[str, list[str]]:
    lines = (line for line in card.splitlines() if line.startswith("| "))
    return {name: values for name, *values in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


def test_what_the_card_says(project, capsys):
    run(
        project,
        "fit",
        "--run_manifest={}",
        "--checkpoint.mode=max",  # the best is the first, so that its values are not the last ones
        "--trainer.max_epochs=3",
        "--data.api_key=sk-very-private",
    )
    run(project, "test", "--ckpt_path=last")
    (folder,) = project.runs
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["git"] = {"commit": "0123456789abcdef", "branch": "main", "dirty": True}  # the folder has no repository
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not (folder / "model_card.md").exists(), "of the best checkpoint alone"
    capsys.readouterr()
    tested = run(project, "test").trainer.callback_metrics
    assert "model card: " in capsys.readouterr().out
    card = (folder / "model_card.md").read_text()
    rows = table(card)
    steps, values = read_metrics(folder)["val/loss"]
    assert steps[0] == 3
    assert rows["loss"] == [f"{values[0]:.6g}", f"{float(tested['test/loss']):.6g}"]
    assert rows["loss/task"] == rows["loss"]
    assert rows["parameters"] == ["36"]
    assert rows["module"] == ["`firstlight.modules.SupervisedModule`"]
    assert rows["checkpoint"][0].startswith("`checkpoints/epoch=0-step=4.ckpt`, step 4, val/loss ")
    assert rows["data"] == ['`KnownData`, fingerprint `{"sha256": "12ab", "file": "\\u2026/set.bin"}`']
    assert rows["code"] == ["git `0123456789ab`, with changes that were not committed"]
    assert f"torch {torch.__version__}" in rows["trained with"][0]
    assert "The checkpoint was chosen by `val/loss`" in card
    assert "class_path: torch.optim.SGD" in card
    assert "batch_size: 8" in card
    assert "warmup: 0.25" in card
    assert card.count("TODO (author)") == 4
    for secret in ("sk-very-private", str(project.root), "/home/"):
        assert secret not in card, secret


def test_the_code_in_the_card_loads_the_model(project, monkeypatch):
    trained = run(project, "fit", "--checkpoint.mode=max")
    run(project, "test")
    run(project, "export", "--format=pt2")
    card = (project.runs[0] / "model_card.md").read_text()
    blocks = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    monkeypatch.chdir(project.runs[0])
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)  # noqa: S102  what a reader of the card would do
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.allclose(names["module"](x), names["model"](x), atol=1e-6)
        assert not torch.allclose(names["module"](x), trained.model(x), atol=1e-6), "the best, not the last"


def test_what_the_author_wrote_stays(project, capsys):
    run(project, "fit", "--trainer.max_epochs=1")
    run(project, "test")
    path = project.runs[0] / "model_card.md"
    assert "| code | not recorded |" in path.read_text(), "there was no manifest"
    mine = "Written by hand.\n\n" + path.read_text().replace("TODO (author): what must", "Nothing: what must")
    path.write_text(mine.replace("| parameters | 36 |", "| parameters | 7 |"))
    run(project, "test")
    assert path.read_text() == mine
    without_marks = "All of it mine.\n"
    path.write_text(without_marks)
    capsys.readouterr()
    run(project, "test")
    assert path.read_text() == without_marks
    assert "has lost its marks and is left as it is" in capsys.readouterr().out


def test_values_after_a_resume(project):
    run(project, "fit", "--trainer.max_epochs=2", "--checkpoint.save_top_k=-1", "--run_manifest={}")
    run(project, "fit", "--resume=last", "--trainer.max_epochs=3", "--run_manifest={}")
    tested = run(project, "test")
    rows = table((project.runs[0] / "model_card.md").read_text())
    # The same data in val and test: the values are the same, if they are of the same weights.
    assert float(rows["loss"][0]) == pytest.approx(float(tested.trainer.callback_metrics["test/loss"]), rel=1e-4)
    assert rows["checkpoint"][0].startswith("`checkpoints/epoch=2-step=12.ckpt`")
    assert len(list(Path(project.runs[0]).glob("manifest*.json"))) == 2
