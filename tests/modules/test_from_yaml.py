"""A YAML file alone makes, trains, tests and applies each module; nothing is written in Python but models and data."""

from __future__ import annotations

import csv
import json
import textwrap
from pathlib import Path

import pytest
import torch
from modules.digit_strings import ColumnReader, DigitStrings
from modules.language_models import CausalTransformer, TopicsData

from firstlight.cli import FirstlightCLI
from firstlight.modules import LanguageModule, TranscriptionModule
from firstlight.tracking import read_metrics

COMMON = """
    seed_everything: 1
    trainer: {max_epochs: 2, accelerator: cpu, devices: 1, log_every_n_steps: 2, enable_model_summary: false}
    learning_rate: {schedule: {class_path: WarmupCosine}}
    checkpoint: {monitor: val/loss}
    overfit_one_batch: {max_steps: 30, on_fail: warn}
    progress_bar: null
    run_manifest: null
"""
LANGUAGE = """
    model:
      model:
        class_path: modules.language_models.CausalTransformer
        init_args: {vocabulary: 107, width: 16, depth: 1, heads: 2, context: 32}
      head: {class_path: torch.nn.Linear, init_args: {in_features: 16, out_features: 107}}
      loss: {class_path: firstlight.losses.LinearCrossEntropyLoss, init_args: {label_smoothing: 0.1, z_loss: 1.0e-4}}
      tie_to: embedding
      context_length: 32
      optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
    data: {context: 32, num_windows: 32}
"""
TRANSCRIPTION = """
    weight_initialization: {}
    model:
      model: {class_path: modules.digit_strings.ColumnReader, init_args: {channels: 4, width: 8}}
      loss: {class_path: firstlight.losses.CTCLoss, init_args: {blank: 0}}
      alphabet: "0123456789"
      beam_width: 3
      metrics: {words: {class_path: torchmetrics.text.WordErrorRate}}
      optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "configs").mkdir()

    def run(module, data, text, *words):
        (tmp_path / "configs" / "default.yaml").write_text(textwrap.dedent(COMMON) + textwrap.dedent(text))
        return FirstlightCLI(module, data, project_root=tmp_path, args=list(words), allowed_packages=["modules"])

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:OverfitOneBatch FAILED")  # thirty steps are few; that it ran is what counts
def test_a_language_model(run):
    text = LANGUAGE.replace("107", str(TopicsData().kinds))
    cli = run(LanguageModule, TopicsData, text, "fit")
    assert cli.trainer.global_step == 4
    assert type(cli.model.model) is CausalTransformer
    assert cli.model.head.weight is cli.model.model.embedding.weight
    assert (cli.model.loss.label_smoothing, cli.model.loss.z_loss) == (0.1, 1e-4)
    (probe,) = [c for c in cli.trainer.callbacks if type(c).__name__ == "OverfitOneBatch"]
    assert probe.result.passed is not None, str(probe.result)
    keys = set(read_metrics(cli.run_folder))
    assert keys >= {"train/loss", "train/loss/task", "val/loss", "val/loss/task", "val/perplexity"}
    assert keys >= {"val/bits_per_token"}
    tested = run(LanguageModule, TopicsData, text, "test")
    for name, value in cli.model.state_dict().items():
        assert torch.equal(tested.model.state_dict()[name], value), name
    assert read_metrics(tested.run_folder)["test/perplexity"][1][0] > 1
    predicted = run(LanguageModule, TopicsData, text, "predict")
    table = rows(predicted.run_folder / "predictions.csv")
    assert len(table) == 32
    assert [name for name in table[0] if name.startswith("nll")] == [f"nll_{position}" for position in range(32)]
    exported = run(LanguageModule, TopicsData, text, "export")
    tokens = torch.arange(3 * 20).reshape(3, 20) % 50  # other sizes than those of the data
    with torch.no_grad():
        logits = torch.export.load(exported.run_folder / "model.pt2").module()(tokens)
        assert torch.allclose(logits, exported.model.eval()(tokens), atol=1e-5)
    session = pytest.importorskip("onnxruntime").InferenceSession(exported.run_folder / "model.onnx")
    assert torch.allclose(torch.as_tensor(session.run(None, {"input": tokens.numpy()})[0]), logits, atol=1e-5)
    alone = LanguageModule.load_from_checkpoint(cli.run_folder / "checkpoints" / "last.ckpt")
    assert torch.equal(alone.generate(torch.tensor([1]), 5, top_k=1), cli.model.generate(torch.tensor([1]), 5, top_k=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:OverfitOneBatch FAILED")
def test_a_reader(run):
    cli = run(TranscriptionModule, DigitStrings, TRANSCRIPTION, "fit")
    assert cli.trainer.global_step == 4
    assert type(cli.model.model) is ColumnReader
    assert (cli.model.alphabet, cli.model.beam_width, cli.model.loss.blank) == ("0123456789", 3, 0)
    (probe,) = [c for c in cli.trainer.callbacks if type(c).__name__ == "OverfitOneBatch"]
    assert probe.result.passed is not None, str(probe.result)
    assert set(read_metrics(cli.run_folder)) >= {"train/loss", "val/loss", "val/char_error_rate", "val/words"}
    tested = run(TranscriptionModule, DigitStrings, TRANSCRIPTION, "test", "--model.beam_width=null")
    assert tested.model.beam_width is None
    assert read_metrics(tested.run_folder)["test/char_error_rate"][1][0] > 0
    predicted = run(TranscriptionModule, DigitStrings, TRANSCRIPTION, "predict")
    table = rows(predicted.run_folder / "predictions.csv")
    assert len(table) == 24
    exported = run(TranscriptionModule, DigitStrings, TRANSCRIPTION, "export", "--format=pt2")
    (given,) = json.loads((exported.run_folder / "export.json").read_text())["inputs"]
    images = torch.rand(3, *given["shape"][1:])
    with torch.no_grad():
        logits = torch.export.load(exported.run_folder / "model.pt2").module()(images)
        assert torch.allclose(logits, exported.model.eval()(images), atol=1e-5)
    assert all(row["text"] == "".join(str(label - 1) for label in json.loads(row["labels"])) for row in table)
