"""The table that predict leaves: every kind of prediction, each sample once and in order."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from firstlight.cli._predictions import PredictionWriter
from firstlight.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, MSELoss
from firstlight.modules import SupervisedModule

NUM = 7  # in batches of 3, 3 and 1
DATA = torch.arange(NUM, dtype=torch.float32)[:, None] + torch.tensor([0.0, 0.25])


class Answering(LightningModule):
    """Predicts what it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.answer(batch[0] if isinstance(batch, list) else batch)


def predicted(folder: Path, module: Any, loaders: Any = None, form: Any = "csv") -> list[dict[str, str]]:
    module = module if isinstance(module, LightningModule) else Answering(module)
    loaders = DataLoader(TensorDataset(DATA), batch_size=3) if loaders is None else loaders
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[PredictionWriter(folder, form)],
    )
    trainer.predict(module, loaders, return_predictions=False)
    return rows(folder / "predictions.csv") if form == "csv" and (folder / "predictions.csv").is_file() else []


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(table: list[dict[str, str]], *names: str) -> Tensor:
    return torch.tensor([[float(row[name]) for name in names] for row in table])


def test_a_column_for_each_output_of_a_regression(tmp_path):
    found = predicted(tmp_path, SupervisedModule(nn.Identity(), MSELoss()), DataLoader(DATA, batch_size=3))
    assert list(found[0]) == ["index", "output_0", "output_1"]
    assert torch.equal(numbers(found, "output_0", "output_1"), DATA)
    assert [row["index"] for row in found] == [str(n) for n in range(NUM)]


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_number_a_sample_is_one_column(tmp_path, shape):
    found = predicted(tmp_path, lambda x: x[:, 1].reshape(shape) / 3)
    assert list(found[0]) == ["index", "output"]
    assert torch.equal(numbers(found, "output")[:, 0], DATA[:, 1] / 3), "every float32 comes back"


def test_float64_and_integers_come_back(tmp_path):
    found = predicted(tmp_path, lambda x: {"wide": x[:, 0].double() / 3, "count": x[:, 0].long() + 2**60})
    assert [float(row["wide"]) for row in found] == [n / 3 for n in range(NUM)]
    assert [int(row["count"]) for row in found] == [n + 2**60 for n in range(NUM)]


def test_classes_by_the_loss(tmp_path):
    found = predicted(tmp_path, SupervisedModule(nn.Identity(), CrossEntropyLoss()), DataLoader(DATA, batch_size=3))
    assert list(found[0]) == ["index", "class", "confidence"]
    assert {row["class"] for row in found} == {"1"}
    assert float(found[0]["confidence"]) == pytest.approx(1 / (1 + 2.718281828**-0.25), abs=1e-6)


def test_two_classes_from_one_logit(tmp_path):
    module = SupervisedModule(nn.Linear(2, 1), BinaryCrossEntropyLoss())
    nn.init.constant_(module.model.weight, 0.5)
    nn.init.constant_(module.model.bias, -3.0)
    found = predicted(tmp_path, module, DataLoader(DATA, batch_size=3))
    logits = DATA.mean(1) - 3
    assert [int(row["class"]) for row in found] == (logits > 0).long().tolist()
    assert torch.allclose(numbers(found, "confidence")[:, 0], torch.sigmoid(logits.abs()), atol=1e-6)


def test_without_a_loss_the_target_says_whether_they_are_classes(tmp_path):
    for name, target, title in (("a", torch.arange(NUM) % 2, "class"), ("b", DATA, "output_1")):
        loader = DataLoader(TensorDataset(DATA, target), batch_size=3)
        assert title in predicted(tmp_path / name, lambda x: x, loader)[0]


def test_parts_have_their_names(tmp_path):
    pair = namedtuple("pair", "low high")
    found = predicted(
        tmp_path,
        lambda x: {"mean": x, "bounds": pair(x[:, 0] - 1, x[:, 0] + 1), "none": None, "map": x.reshape(-1, 1, 2)},
    )
    assert list(found[0]) == ["index", "mean_0", "mean_1", "bounds_low", "bounds_high", "map_0_0", "map_0_1"]
    assert torch.equal(numbers(found, "mean_0", "mean_1"), DATA)
    assert torch.equal(numbers(found, "map_0_0", "map_0_1"), DATA)
    assert torch.equal(numbers(found, "bounds_high")[:, 0], DATA[:, 0] + 1)
    found = predicted(tmp_path / "tuple", lambda x: (x[:, 0], x[:, 1] > 3))
    assert list(found[0]) == ["index", "output_0", "output_1"]
    assert [row["output_1"] for row in found] == [str(bool(x > 3)) for x in DATA[:, 1]]


TEXTS = ["plain", "a, b", 'say "c"', "line\nbreak", "", "ü", "=1+1"]


def spoken(x: Tensor) -> dict[str, Any]:
    places = x[:, 0].long().tolist()
    return {"text": [TEXTS[n] for n in places], "labels": [list(range(n)) for n in places]}


def test_texts_and_lists(tmp_path):
    found = predicted(tmp_path, spoken)
    assert [row["text"] for row in found] == TEXTS
    assert [json.loads(row["labels"]) for row in found] == [list(range(n)) for n in range(NUM)]
    found = predicted(tmp_path / "alone", lambda x: spoken(x)["text"])
    assert [row["output"] for row in found] == TEXTS


def test_sequences_whose_length_differs_between_batches(tmp_path):
    found = predicted(tmp_path, lambda x: torch.ones(len(x), len(x)))
    assert [json.loads(row["output"]) for row in found] == [[1.0] * 3] * 6 + [[1.0]]


def test_several_loaders_of_different_batch_sizes(tmp_path):
    loaders = [DataLoader(TensorDataset(DATA), batch_size=3), DataLoader(TensorDataset(DATA[:5] + 10), batch_size=2)]
    found = predicted(tmp_path, lambda x: x[:, 0], loaders)
    assert [(int(r["loader"]), int(r["index"])) for r in found] == [(0, n) for n in range(7)] + [
        (1, n) for n in range(5)
    ]
    assert torch.equal(numbers(found, "output")[:, 0], torch.cat([DATA, DATA[:5] + 10])[:, 0])


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled")  # Lightning's advice
def test_the_order_is_the_data_sets(tmp_path):
    shuffled = DataLoader(TensorDataset(DATA), batch_size=3, shuffle=True)
    seen = []
    found = predicted(tmp_path, lambda x: (seen.append(x), x[:, 0])[1], shuffled)
    assert torch.equal(numbers(found, "output")[:, 0], DATA[:, 0])
    assert not torch.equal(torch.cat(seen), DATA), "the loader did shuffle"


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(DATA)


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_a_stream_is_counted(tmp_path):
    found = predicted(tmp_path, lambda x: x[:, 0], DataLoader(Stream(), batch_size=3))
    assert torch.equal(numbers(found, "index", "output"), DATA[:, :1].expand(NUM, 2))


@pytest.mark.parametrize(
    "answer", [lambda x: x.sum(), lambda x: torch.zeros(len(x), 2048), lambda x: {"one": x, "all": x.mean(0)[:1]}]
)
def test_what_is_no_table_is_kept_by_batches(tmp_path, answer, capsys):
    assert not predicted(tmp_path, answer)
    kept = torch.load(tmp_path / "predictions.pt", weights_only=True)
    assert len(kept) == 3
    assert "which are no table: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.pt"]


def test_parquet_holds_what_csv_holds(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")

    def answer(x: Tensor) -> dict[str, Any]:
        return spoken(x) | {"mean": x / 3, "half": x[:, 0].bfloat16(), "yes": x[:, 0] > 2}

    predicted(tmp_path, answer, form="parquet")
    table = parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert list(table) == ["index", "text", "labels", "mean_0", "mean_1", "half", "yes"]
    assert table["text"] == TEXTS
    assert table["labels"] == [list(range(n)) for n in range(NUM)]
    assert table["mean_1"] == (DATA[:, 1] / 3).tolist()
    assert table["half"] == [float(n) for n in range(NUM)]
    assert table["yes"] == [n > 2 for n in range(NUM)]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]


def test_from_the_command_line(project, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    project.run("fit")
    folder = project.run("predict", "--format=parquet").run_folder
    assert "format" not in project.saved(folder)
    table = parquet.read_table(folder / "predictions.parquet")
    assert table.column_names == ["index", "class", "confidence"]
    assert len(table) == 32
    assert "32 predictions: " in capsys.readouterr().out


def test_without_pyarrow_it_says_so_before_the_work(project, refused, monkeypatch):
    project.run("fit")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    said = refused("predict", "--format=parquet")
    assert said == ("error: --format parquet needs pyarrow: pip install 'firstlight[parquet]', or take --format csv\n")


@pytest.mark.slow
def test_two_processes_write_each_sample_once_and_in_order(project):
    project.run("fit")
    more = ["--data.num_samples=21", "--trainer.strategy=ddp"]
    alone = rows(project.run("predict", more[0]).run_folder / "predictions.csv")
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("tiny.py")), "predict", *more, "--trainer.devices=2"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": f"{tests}:{tests.parent / 'plugins'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("21 predictions: ") == 1
    found = rows(project.runs[0] / "predict" / "predictions.csv")
    assert [int(row["index"]) for row in found] == list(range(21))
    assert [row["class"] for row in found] == [row["class"] for row in alone]
    assert torch.allclose(numbers(found, "confidence"), numbers(alone, "confidence"), atol=1e-6)
