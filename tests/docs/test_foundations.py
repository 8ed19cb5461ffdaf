"""The handbook: every page has its parts, its figure and the numbers that its script last wrote; its YAML trains."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from firstlight.cli import FirstlightCLI
from firstlight.modules import SupervisedModule

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "figures" / "foundations"
PAGES = sorted(path for path in (DOCS / "explanation" / "foundations").glob("*.md") if path.stem != "index")
SCRIPTS = sorted(path for path in FIGURES.glob("*.py") if not path.name.startswith("_"))
PARTS = (
    "The idea",
    "The formula",
    "The experiment",
    "When to use what",
    "Switch it on",
    "Pitfalls",
    "Sources",
)
YAML = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S))
]
BASE = """
trainer:
  fast_dev_run: 2
  accelerator: cpu
  devices: 1
  enable_model_summary: false
model:
  model:
    class_path: torch.nn.Linear
    init_args: {in_features: 64, out_features: 10}
  loss: {class_path: firstlight.losses.CrossEntropyLoss}
run_manifest: null
progress_bar: null
checkpoint: {monitor: val/loss}
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a script of a figure, which finds its helper beside it; matplotlib is an extra."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(FIGURES))

    def _load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FIGURES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield _load
    sys.modules.pop("_page", None)


def test_every_part_of_the_foundations_has_a_page_and_a_script() -> None:
    assert [page.stem for page in PAGES] == [script.stem.replace("_", "-") for script in SCRIPTS]
    assert len(PAGES) == 12
    index = (DOCS / "explanation" / "foundations" / "index.md").read_text(encoding="utf-8")
    tree = re.search(r"```{toctree}\n:hidden:\n\n(.*?)\n```", index, re.S)
    assert tree is not None
    assert sorted(tree[1].split()) == [page.stem for page in PAGES]
    assert all(f"]({page.name})" in index for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_its_parts_in_order(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.*)$", text, re.M)) == PARTS
    parts = dict(zip(PARTS, re.split(r"^## .*$", text, flags=re.M)[1:], strict=True))
    assert "```text" in parts["The formula"]
    assert "```yaml" in parts["Switch it on"]
    assert "```python" in parts["Switch it on"] or "```python" in parts["When to use what"]
    assert parts["Pitfalls"].count("\n- **") >= 5
    assert "https://arxiv.org/abs/" in parts["Sources"]
    for number, target in re.findall(r"\[arXiv:([\d.]+)\]\(https://arxiv.org/abs/([\d.]+)\)", text):
        assert number == target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_figure_and_says_what_is_in_it(page: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    pictures = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert len(pictures) == 1
    alt, target = pictures[0]
    picture = (page.parent / target).resolve()
    assert picture == FIGURES / f"{page.stem.replace('-', '_')}.png"
    assert len(alt.split()) >= 25
    assert image.imread(picture).shape[1] == 720, "as wide as the text, so that letters keep their size"
    assert picture.stat().st_size < 100_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_numbers_of_a_page_are_those_that_its_script_wrote(script: Path, load: Any) -> None:
    """And they bear out what the page says."""
    module, shared = load(script.stem), sys.modules["_page"]
    found = json.loads(script.with_suffix(".json").read_text(encoding="utf-8"))
    claims = module.claims(found)
    assert len(claims) >= 3
    assert [text for text, holds in claims if not holds] == []
    page = (DOCS / "explanation" / "foundations" / f"{script.stem.replace('_', '-')}.md").read_text(encoding="utf-8")
    part = shared.measured(found, module.claims, module.table)
    assert f"<!-- measured -->\n{part}<!-- end of measured -->" in page
    assert page.count("<!-- measured -->") == 1


def test_a_claim_that_does_not_hold_ends_the_script(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("gradient_descent")
    shared = sys.modules["_page"]
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path)])
    monkeypatch.setattr(shared.tempfile, "gettempdir", lambda: str(tmp_path))
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match=r"what the page says does not hold.*: two is three"):
        shared.run(
            "none.py",
            lambda: {"x": 2.0},
            lambda found: [("two is three", found["x"] == 3)],
            lambda _: "",
            lambda _: None,
        )
    torch.set_num_threads(threads)
    assert [path.name for path in tmp_path.iterdir()] == ["none.json"]


def test_claims_that_need_no_training_hold_now(load: Any) -> None:
    """The others are measured anew by ``make docs-figures``."""
    initialization = load("initialization")
    he, wild = (initialization.squares(scheme, "ReLU", 1024, 0) for scheme in ("He", "N(0, 1)"))
    assert max(he) < 2 * min(he)
    assert wild[5] > 1e10 * wild[0]
    noise = load("gradient_descent").noise()
    assert noise["seen"][:-1] == pytest.approx(noise["theory"][:-1], rel=0.1)
    assert load("optimizers").lamb_step() < 1e-3


class Digits(LightningDataModule):
    """Noise in the shape of the digits."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(128, 64, generator=generator)
        target = inputs[:, :10].argmax(1)
        return DataLoader(TensorDataset(inputs, target), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.train_dataloader().dataset, self.batch_size)


@pytest.mark.parametrize("block", YAML)
def test_the_lines_of_yaml_train(block: str, tmp_path: Path) -> None:
    """Read by the command line of a project, over a configuration without any of it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "default.yaml").write_text(BASE)
    config = yaml.safe_load(block)
    (tmp_path / "page.yaml").write_text(block)
    cli = FirstlightCLI(
        SupervisedModule, Digits, project_root=tmp_path, args=["fit", "--config", str(tmp_path / "page.yaml")]
    )
    for key in config:
        assert cli.config["fit"][key] is not None, key
    assert cli.trainer.global_step > 0
