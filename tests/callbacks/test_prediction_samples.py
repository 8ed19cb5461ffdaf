import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import PredictionSamples
from firstlight.tracking import SafeWandbLogger, read_offline_run
from helpers import fit, same, weights

CLASSES = 4


def images(count=40, ignored=()):
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(count) // 3 % CLASSES  # in every class some for each of two ranks
    pictures = torch.randn(count, 1, 6, 6, generator=generator) + target.view(-1, 1, 1, 1)
    target = target.clone()
    target[list(ignored)] = -100
    return DataLoader(TensorDataset(pictures, target), batch_size=7)


class Classifier(LightningModule):
    def __init__(self, answer=lambda output, target: {"output": output, "target": target}):
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, CLASSES)
        self.net = nn.Sequential(*layers)
        self.answer = answer

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], ignore_index=-100)

    def validation_step(self, batch, batch_idx):
        return self.answer(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def brute_force(module, loader):
    module.eval()
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    with torch.no_grad():
        for picture, target in loader:
            for t, p in zip(target, module.net(picture).argmax(1), strict=True):
                if t >= 0:
                    matrix[t, p] += 1
    return matrix


@pytest.fixture
def logger(tmp_path):
    made = SafeWandbLogger(save_dir=tmp_path / "run")
    yield made
    made.finish()


def test_table_and_picture_reach_wandb_offline(logger):
    callback = PredictionSamples(num_samples=10, class_names=["a", "b", "c", "d"])
    module = Classifier()
    fit(module, callback, data=images(), val=images(), logger=logger)
    logger.finish()
    run = read_offline_run(logger.offline_dir)
    steps, tables = run.series("val/predictions")
    assert steps == [6, 12]
    assert (tables[-1]["nrows"], tables[-1]["ncols"]) == (10, 5)
    staged = run.artifacts[-1]["files"]  # the table's own file holds words where the pictures are
    table = json.loads(next(Path(local).read_text() for path, local in staged.items() if path.endswith(".json")))
    assert table["columns"] == ["image", "prediction", "confidence", "target", "right"]
    module.eval()
    pictures, target = next(iter(images()))
    with torch.no_grad():
        confidence, prediction = module.net(pictures).softmax(1).max(1)
    for i, (image, name, sure, wanted, right) in enumerate(table["data"][: len(target)]):
        assert (name, wanted) == ("abcd"[prediction[i]], "abcd"[target[i]])
        assert sure == pytest.approx(confidence[i].item(), abs=1e-6)
        assert right is (name == wanted)
        assert Path(staged[image["path"]]).is_relative_to(logger.save_dir)
        assert Path(staged[image["path"]]).is_file()
    assert run.series("val/confusion_matrix")[0] == [6, 12]
    (picture,) = run.series("val/confusion_matrix")[1][-1]["filenames"]
    assert (logger.offline_dir / "files" / picture).is_file()
    assert not list(logger.offline_dir.parent.parent.glob("*.png"))


@pytest.mark.parametrize("ignored", [(), (0, 5, 39)])
def test_the_matrix_is_that_of_the_last_validation(ignored, tmp_path):
    callback, module = PredictionSamples(), Classifier()
    loader = images(ignored=ignored)
    fit(module, callback, data=images(), val=loader, default_root_dir=tmp_path)
    assert torch.equal(callback._matrix, brute_force(module, loader))
    assert callback._matrix.sum() == 40 - len(ignored)


def test_a_run_with_csv_only_gets_the_picture_in_its_folder(tmp_path):
    fit(Classifier(), PredictionSamples(), data=images(), val=images(), logger=CSVLogger(tmp_path, name="", version=""))
    assert (tmp_path / "confusion_matrix.png").is_file()


def test_logged_every_n_epochs_and_at_the_end(logger):
    callback = PredictionSamples(every_n_epochs=2)
    fit(Classifier(), callback, data=images(), val=images(), logger=logger, max_epochs=5)
    logger.finish()
    assert read_offline_run(logger.offline_dir).series("val/predictions")[0] == [12, 24, 30]


def test_the_sanity_check_is_not_shown(logger):
    callback = PredictionSamples()
    fit(Classifier(), callback, data=images(), val=images(), logger=logger, num_sanity_val_steps=2, max_epochs=1)
    logger.finish()
    assert read_offline_run(logger.offline_dir).series("val/predictions")[0] == [6]


@pytest.mark.parametrize(
    "answer",
    [
        lambda output, target: None,
        lambda output, target: output.sum(),
        lambda output, target: {"output": output},
        lambda output, target: {"output": output.argmax(1), "target": target},
        lambda output, target: {"output": output[:, 0], "target": target},
        lambda output, target: {"output": output, "target": target.float()},
        lambda output, target: {"output": output, "target": nn.functional.one_hot(target, CLASSES)},
        lambda output, target: {"output": output.repeat(1, 300), "target": target},
    ],
)
def test_it_stands_aside_once_where_there_are_no_class_logits(answer, tmp_path):
    with pytest.warns(UserWarning, match="PredictionSamples stands aside") as warned:
        fit(Classifier(answer), PredictionSamples(), data=images(), val=images(), default_root_dir=tmp_path)
    assert sum("PredictionSamples" in str(w.message) for w in warned) == 1
    assert not list(tmp_path.glob("*.png"))


def test_names_that_do_not_fit_are_said_once(tmp_path):
    callback = PredictionSamples(class_names=["a", "b"])
    with pytest.warns(UserWarning, match="class_names has 2 names for 4 classes") as warned:
        fit(Classifier(), callback, data=images(), val=images(), default_root_dir=tmp_path)
    assert sum("class_names" in str(w.message) for w in warned) == 1


def test_inputs_that_are_no_images_are_left_out(logger):
    class Flat(Classifier):
        def validation_step(self, batch, batch_idx):
            return super().validation_step((batch["input"], batch["target"]), batch_idx)

    pictures, target = images().dataset.tensors
    rows = [{"input": x.flatten(), "target": t} for x, t in zip(pictures, target, strict=True)]
    fit(Flat(), PredictionSamples(num_samples=3), data=images(), val=DataLoader(rows, batch_size=7), logger=logger)
    logger.finish()
    table = read_offline_run(logger.offline_dir).series("val/predictions")[1][-1]
    assert (table["nrows"], table["ncols"]) == (3, 4)


def test_training_is_bit_for_bit_the_same(logger, tmp_path):
    def run(*callbacks, **options):
        module = Classifier()
        fit(module, *callbacks, data=images(), val=images(), max_epochs=3, **options)
        return weights(module), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    bare = run()
    for options in ({"logger": logger}, {"default_root_dir": tmp_path}):
        watched = run(PredictionSamples(), **options)
        assert same(bare[0], watched[0])
        assert torch.equal(bare[1], watched[1])
        assert bare[2:] == watched[2:]


def test_nothing_waits_for_the_device_within_validation():
    """On a device each of these would be a wait: the count of scalars read must not grow with the batches."""

    def scalars_read(batches):
        callback = PredictionSamples(num_samples=4)
        module = Classifier()
        from torch.utils._python_dispatch import TorchDispatchMode

        class Count(TorchDispatchMode):
            seen = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                Count.seen += function is torch.ops.aten._local_scalar_dense.default
                return function(*args, **(kwargs or {}))

        pictures, target = images(batches * 7).dataset.tensors
        callback._counting = True
        with Count():
            for i in range(batches):
                batch = pictures[i * 7 : i * 7 + 7], target[i * 7 : i * 7 + 7]
                outputs = module.validation_step(batch, i)
                callback.on_validation_batch_end(None, module, outputs, batch, i)
        return Count.seen

    assert scalars_read(12) == 0


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="num_samples must be 0 or more; got -1"):
        PredictionSamples(num_samples=-1)
    with pytest.raises(ValueError, match="every_n_epochs must be 1 or more; got 0"):
        PredictionSamples(every_n_epochs=0)


def test_no_table_without_samples(logger):
    fit(Classifier(), PredictionSamples(num_samples=0), data=images(), val=images(), logger=logger)
    logger.finish()
    run = read_offline_run(logger.offline_dir)
    assert run.series("val/predictions")[0] == []
    assert run.series("val/confusion_matrix")[0] == [6, 12]


@pytest.mark.slow
def test_two_processes_count_every_sample(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from lightning.pytorch import Trainer\n"
        "from test_prediction_samples import Classifier, PredictionSamples, brute_force, images\n"
        "callback, module = PredictionSamples(), Classifier()\n"
        "del module.net[2]\n"  # batch norm has statistics of its own on each rank
        "Trainer(accelerator='cpu', devices=2, strategy='ddp', max_epochs=1, logger=False, num_sanity_val_steps=0,\n"
        "        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=sys.argv[1],\n"
        "        callbacks=[callback]).fit(module, images(), images())\n"
        "assert torch.equal(callback._matrix, brute_force(module, images())), callback._matrix\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("confusion_matrix.png"))) == 1
