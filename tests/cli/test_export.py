"""A trained model as files of its own: the same numbers, at any batch size, and nothing half-written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.test_generative import COMMON, MODELS
from cli.test_predictions import numbers, rows
from cli.tiny import DEFAULT, Project, TwoTerms
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.cli._parity import parity
from firstlight.modules import ContrastiveModule, Exportable, GANModule, VAEModule


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "export.json").read_text())


def of_pt2(folder: Path) -> Any:
    return torch.export.load(folder / "model.pt2").module()


def of_onnx(folder: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda *inputs: [
        torch.from_numpy(found)
        for found in session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)})
    ]


@pytest.fixture
def failed(project: Project, capsys: pytest.CaptureFixture[str]):
    """Run an export that must fail; return what it said, after the checks that hold for every failure."""

    def run(*args: str, code: int = 1) -> str:
        before = {path: path.stat().st_mtime_ns for path in project.root.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit) as stopped:
            project.run("export", *args)
        assert stopped.value.code == code
        assert {p: p.stat().st_mtime_ns for p in project.root.rglob("*") if p.is_file()} == before
        assert not list(project.root.rglob(".export-*"))
        said = capsys.readouterr().err
        return said[said.index("error: ") :]

    return run


def test_both_formats_give_what_predict_gives(project, capsys):
    project.run("fit", "--checkpoint.mode=max", "--trainer.max_epochs=3")  # the best is the first
    predicted = project.run("predict")
    table = rows(predicted.run_folder / "predictions.csv")
    inputs, _ = predicted.datamodule.data[:]
    capsys.readouterr()
    folder = project.run("export").run_folder
    said = capsys.readouterr().out
    assert folder == project.runs[0] / "export"
    assert {path.name for path in folder.iterdir()} == {"model.pt2", "model.onnx", "export.json"}
    assert "export: the best checkpoint of the newest run, " in said
    assert "model.onnx differs from the model by at most " in said
    for size in (1, 5, 32):  # it was traced on eight
        for output in (of_pt2(folder)(inputs[:size]), of_onnx(folder)(inputs[:size])[0]):
            confidence, label = output.detach().softmax(1).max(1)
            assert label.tolist() == [int(row["class"]) for row in table[:size]]
            assert torch.allclose(confidence, numbers(table[:size], "confidence")[:, 0], atol=1e-6)
    found = facts(folder)
    assert (found["checkpoint"], found["step"]) == ("epoch=0-step=4.ckpt", 4), "as test and predict choose"
    assert found["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 8]}]
    assert found["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 4]}]
    assert set(found["files"]) == {"model.pt2", "model.onnx"}
    assert all(0 <= file["max_abs_difference"] < 1e-5 for file in found["files"].values())
    assert str(project.root) not in (folder / "export.json").read_text()

    last = project.run("export", "--format=pt2", "--ckpt_path=last").run_folder
    assert {path.name for path in last.iterdir()} == {"model.pt2", "export.json"}, "the new one in place of the old"
    assert facts(last)["step"] == 12
    assert {path.name for path in last.parent.iterdir()} >= {"export", "predict"}


@pytest.mark.parametrize("module", [ContrastiveModule, VAEModule, GANModule])
def test_other_modules(tmp_path, module):
    project = Project(tmp_path / "project", module)
    project.write("configs/default.yaml", COMMON + MODELS[module])
    project.run("fit", "--trainer.max_epochs=1")
    cli = project.run("export", "--format=pt2")
    inputs = torch.randn(3, 3) if module is GANModule else torch.randn(3, 8)
    output = of_pt2(cli.run_folder)(inputs)
    model = cli.model.eval()
    with torch.no_grad():
        if module is VAEModule:
            mean, log_variance = model.encode(inputs)
            expected = {"reconstruction": model.decoder(mean), "mean": mean, "log_variance": log_variance}
        else:
            expected = {"output": model(inputs)}
    assert [part["name"] for part in facts(cli.run_folder)["outputs"]] == list(expected)
    output = output if isinstance(output, dict) else {"output": output}
    for name, value in expected.items():
        assert torch.allclose(output[name], value, atol=1e-6), name


class Net(LightningModule):
    """A module without a hook, whose validation data is the only one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.net = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.net(x)
        return logits, {"label": logits.argmax(1)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0])[0], batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


PLAIN = DEFAULT[: DEFAULT.index("    model:")] + DEFAULT[DEFAULT.index("    trainer:") :]


def plain(project: Project, module: type[LightningModule]) -> Project:
    project.module = module
    project.write("configs/default.yaml", PLAIN)
    project.run("fit", "--trainer.max_epochs=1")
    return project


def test_a_module_of_ones_own(project):
    cli = plain(project, Net).run("export", "--format=pt2", "--data.batch_size=1")
    x = torch.randn(6, 8)
    logits, parts = of_pt2(cli.run_folder)(x)
    assert torch.allclose(logits, cli.model(x)[0], atol=1e-6)
    assert torch.equal(parts["label"], logits.argmax(1))
    assert [(p["name"], p["dtype"], p["shape"]) for p in facts(cli.run_folder)["outputs"]] == [
        ("output_0", "float32", ["batch", 4]),
        ("output_1_label", "int64", ["batch"]),
    ]


class Halves(Net):
    """Says itself what to export: two inputs, sizes that are the batch's alone."""

    def export_model(self, batch: Any) -> Exportable:
        return Exportable(Pairs(), (batch[0][:, :4], batch[0][:, 4:]))


class Pairs(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (left + 2 * right).reshape(8, 2, 2).sum(-1)


def test_sizes_that_are_fixed_are_said_to_be(project, capsys):
    folder = plain(project, Halves).run("export").run_folder
    assert (
        "export: sizes are fixed, as in the batch it was traced on: UserError: You marked batch as dynamic"
        in capsys.readouterr().out
    )
    assert [(p["name"], p["shape"]) for p in facts(folder)["inputs"]] == [("left", [8, 4]), ("right", [8, 4])]
    left, right = torch.randn(2, 8, 4)
    expected = Pairs()(left, right)
    assert torch.allclose(of_pt2(folder)(left, right), expected)
    assert torch.allclose(of_onnx(folder)(left, right)[0], expected, atol=1e-6)


class Restless(Net):
    """Drops out in evaluation too: no two passes are alike."""

    def forward(self, x: Tensor) -> Any:
        return F.dropout(self.net(x), training=True), {}


def test_another_model_is_not_kept(project, failed):
    said = plain(project, Restless) and failed("--format=pt2")
    assert said.startswith("error: model.pt2 differs from the model by at most ")
    assert "above the tolerance 0.0001; nothing was kept" in said
    assert not (project.runs[0] / "export").exists()
    cli = project.run("export", "--format=pt2", "--tolerance=1000")
    assert facts(cli.run_folder)["files"]["model.pt2"]["max_abs_difference"] > 1e-4
    failed("--format=pt2")  # which also sees that what is there stays


class Branching(Net):
    def forward(self, x: Tensor) -> Any:
        return self.net(x if x.sum() > 0 else -x), {}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Branching, "error: torch.export cannot trace Branching: GuardOnDataDependentSymNode: Could not guard on data"),
        (TwoTerms, "error: TwoTerms does not say what to export: write forward(x) or export_model(batch)\n"),
    ],
)
def test_what_cannot_be_exported(project, failed, module, expected):
    plain(project, module)
    assert failed("--format=pt2").startswith(expected)


def test_without_onnx(project, failed, monkeypatch, capsys):
    project.run("fit", "--trainer.max_epochs=1")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    said = failed("--format=onnx", code=2)
    assert said == "error: --format onnx needs onnxscript: pip install 'firstlight[export]'\n"
    folder = project.run("export", "--trainer.accelerator=gpu").run_folder  # it goes on the CPU all the same
    assert {path.name for path in folder.iterdir()} == {"model.pt2", "export.json"}
    assert "export: no model.onnx; pip install 'firstlight[export]' for it" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, when it compiles
def test_a_checkpoint_from_elsewhere(project, tmp_path):
    project.run("fit", "--trainer.max_epochs=1")
    apart = tmp_path / "apart.ckpt"
    apart.write_bytes((project.runs[0] / "checkpoints" / "last.ckpt").read_bytes())
    folder = project.run("export", "--format=pt2", "--ckpt_path=apart.ckpt", "--model.compile=true").run_folder
    assert facts(folder)["checkpoint"] == "apart.ckpt"
    assert len(project.runs) == 2


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expected", "found", "difference", "passed"),
    [
        ([1.0, -2.0], [1.0, -2.00005], 5e-5, True),
        ([1.0, -2.0], [1.0, -2.0005], 5e-4, False),
        ([1.0, 1000.0], [1.0, 1000.05], 0.05, True),  # beside the largest
        ([0.0, 1.0], [3e-4, 1.0], 3e-4, False),
        ([NAN, INF, -INF], [NAN, INF, -INF], 0.0, True),
        ([1.0, 1.0], [1.0, NAN], INF, False),
        ([NAN], [1.0], INF, False),
        ([INF], [-INF], INF, False),
        ([], [], 0.0, True),
        ([1, 2], [1, 3], 1.0, False),
        ([True, False], [True, False], 0.0, True),
        ([1.0, 2.0], [1.0], INF, False),
    ],
)
def test_parity(expected, found, difference, passed):
    expected, found = torch.tensor(expected), torch.tensor(found)
    result = parity([expected], [found], tolerance=1e-4)
    assert result.passed is passed
    assert result.max_abs_difference == pytest.approx(difference, rel=1e-2)


def test_parity_of_several_outputs():
    one, two = torch.zeros(3), torch.ones(3)
    assert parity([one, two], [one, two], tolerance=0.0).passed
    assert not parity([one, two], [two, two], tolerance=0.0).passed
    assert not parity([one, two], [one], tolerance=0.0).passed
    assert not parity([one], [one[:, None]], tolerance=0.0).passed
