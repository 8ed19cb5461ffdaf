"""TranscriptionModule: it learns to read, and measures what it read over the whole epoch."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from modules.digit_strings import ALPHABET, ColumnReader, digit_strings, strings_loader
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.text import WordErrorRate

from firstlight.callbacks import LearningRateScheduler, OverfitOneBatch
from firstlight.losses import CTCLoss
from firstlight.modules import TranscriptionModule
from firstlight.regularizers import L2Penalty
from firstlight.schedules import WarmupCosine
from firstlight.tracking import read_metrics
from helpers import fit, same, trainer, weights

CLASSES = 5


def module(**kwargs) -> TranscriptionModule:
    """Return frames [N, T, 6] to logits [N, T, 5], frame by frame."""
    torch.manual_seed(1)
    return TranscriptionModule(kwargs.pop("model", nn.Linear(6, CLASSES)), **kwargs)


def spoken(num: int = 6, *, blank: int = 0) -> tuple[torch.Tensor, ...]:
    """Return a batch: frames, labels other than the blank, both lengths; the last sample has no alignment."""
    generator = torch.Generator().manual_seed(num)
    frames = 3 * torch.randn(num, 9, 6, generator=generator)
    labels = torch.randint(1, CLASSES, (num, 4), generator=generator)
    labels = labels if blank == 0 else labels - 1  # blank 4
    input_lengths = torch.randint(8, 10, (num,), generator=generator)
    target_lengths = torch.randint(1, 5, (num,), generator=generator)
    input_lengths[-1], target_lengths[-1] = 3, 4
    return frames, labels, input_lengths, target_lengths


def edits(a: list[int], b: list[int]) -> int:
    """Levenshtein's distance, as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))


@pytest.mark.slow
def test_it_reads_digit_strings_that_it_has_not_seen():
    """Greedy decoding gets at most one digit in ten wrong, a beam search no more than that."""
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
    reader = TranscriptionModule(ColumnReader(), alphabet=ALPHABET, optimizer=optimizer)
    schedule = LearningRateScheduler(WarmupCosine(0.1))
    run = fit(reader, schedule, data=strings_loader(2000), max_epochs=5, gradient_clip_val=1.0)
    test = strings_loader(500, seed=1, test=True, batch_size=100)
    (greedy,) = run.test(reader, test, verbose=False)
    reader.beam_width = 8
    (beam,) = run.test(reader, test, verbose=False)
    assert beam["test/char_error_rate"] <= greedy["test/char_error_rate"] <= 0.10
    assert beam["test/loss"] == greedy["test/loss"]


@pytest.mark.parametrize("beam_width", [None, 6])
@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("blank", [0, 4])
def test_the_error_rate_is_all_edits_over_all_labels(stage, beam_width, blank):
    reader = module(loss=CTCLoss(blank=blank), beam_width=beam_width)
    batches = [spoken(num, blank=blank) for num in (6, 2, 3)]
    run = trainer()
    data = DataLoader(batches, batch_size=None)
    (logged,) = (run.validate if stage == "val" else run.test)(reader, data, verbose=False)
    wrong = labels = 0
    for frames, targets, input_lengths, target_lengths in batches:
        read = reader.transcribe(frames, input_lengths, beam_width=beam_width)
        for found, row, length in zip(read, targets.tolist(), target_lengths.tolist(), strict=True):
            wrong += edits(found, row[:length])
            labels += length
    assert wrong > 0
    assert logged[f"{stage}/char_error_rate"] == pytest.approx(wrong / labels, rel=1e-6)


def test_the_loss_is_that_of_torch_without_what_has_no_alignment():
    reader, (frames, targets, input_lengths, target_lengths) = module(), spoken()
    log_probs = reader(frames).log_softmax(-1).transpose(0, 1)
    each = F.ctc_loss(log_probs, targets, input_lengths, target_lengths, reduction="none")
    assert each.isfinite().tolist() == [True] * 5 + [False]
    expected = (each / target_lengths)[:-1].mean()
    torch.testing.assert_close(reader.loss_terms((frames, targets, input_lengths, target_lengths))["task"], expected)


@pytest.mark.parametrize("blank", [0, 4])
def test_batches_in_all_their_forms(blank):
    reader = module(loss=CTCLoss(blank=blank))
    frames, targets, _, target_lengths = spoken(blank=blank)
    full = torch.full((6,), 9)
    padded = torch.where(torch.arange(4) < target_lengths[:, None], targets, blank)
    forms = [
        (frames, padded),
        [frames, padded, full, target_lengths],
        (frames, targets, full.tolist(), target_lengths.tolist()),
        {"input": frames, "target": padded},
        {"input": frames, "target": targets, "target_lengths": target_lengths},
        {"input": frames, "target": padded, "input_lengths": full, "more": "is left alone"},
    ]
    losses = [reader.loss_terms(form)["task"].item() for form in forms]
    assert losses == [losses[0]] * len(forms)
    assert [reader.num_valid(form) for form in forms] == [6] * len(forms)
    predictions = [reader.predict_step(form, 0) for form in [frames, *forms]]
    assert predictions == [predictions[0]] * 7
    for form in (frames, (frames,), (frames, targets, full), {"input": frames}):
        with pytest.raises(TypeError, match=r"batch must be \(inputs, targets\), \(inputs, targets, input_lengths"):
            reader.loss_terms(form)
    with pytest.raises(TypeError, match="targets must be a tensor of shape"):
        reader.loss_terms((frames, targets.flatten()))
    with pytest.raises(ValueError, match=f"other than blank={blank}"):
        reader.loss_terms((frames, torch.where(torch.arange(4) == 1, blank, targets)))


@pytest.mark.parametrize(
    ("blank", "letters"), [(0, {1: "a", 2: "b", 3: "c", 4: "d"}), (2, {0: "a", 1: "b", 3: "c", 4: "d"})]
)
def test_an_alphabet_makes_text(blank, letters):
    reader = module(alphabet="abcd", loss=CTCLoss(blank=blank))
    frames = spoken()[0]
    predicted = reader.predict_step(frames, 0)
    assert predicted["text"] == ["".join(letters[label] for label in row) for row in predicted["labels"]]
    assert len(set("".join(predicted["text"]))) == 4
    with pytest.raises(ValueError, match="alphabet must be 4 characters, one for each class but the blank; got 'abc'"):
        module(alphabet="abc").predict_step(frames, 0)


def test_steps_return_what_was_read():
    reader = module(alphabet="abcd")
    seen = []

    class Keep(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(outputs)

    batch = spoken()
    trainer(callbacks=[Keep()]).validate(reader, DataLoader([batch], batch_size=None), verbose=False)
    assert seen[0]["output"] == [
        "".join("abcd"[label - 1] for label in row) for row in reader.transcribe(*batch[::2][:2])
    ]
    assert seen[0]["target"] == [
        "".join("abcd"[label - 1] for label in row[:length])
        for row, length in zip(batch[1].tolist(), batch[3].tolist(), strict=True)
    ]


def test_further_metrics_get_texts():
    """Words in an alphabet with a space."""
    reader = module(alphabet="ab c", metrics={"words": WordErrorRate()})
    (logged,) = trainer().validate(reader, DataLoader([spoken()], batch_size=None), verbose=False)
    metric = WordErrorRate()
    frames, targets, input_lengths, target_lengths = spoken()
    rows = zip(targets.tolist(), target_lengths.tolist(), strict=True)
    wanted = ["".join("ab c"[label - 1] for label in row[:length]) for row, length in rows]
    read = ["".join("ab c"[label - 1] for label in row) for row in reader.transcribe(frames, input_lengths)]
    metric.update(read, wanted)
    assert logged["val/words"] == pytest.approx(metric.compute().item())
    assert "val/char_error_rate" in logged


class Halving(nn.Module):
    """Takes every second frame, and says how many are left."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, frames, lengths):
        return self.head(frames[:, ::2]), (lengths + 1) // 2


def test_a_model_may_know_about_lengths():
    reader = module(model=Halving(), model_takes_lengths=True)
    frames, targets, input_lengths, target_lengths = spoken()
    log_probs = reader.model.head(frames[:, ::2]).log_softmax(-1).transpose(0, 1)
    halved = (input_lengths + 1) // 2
    each = F.ctc_loss(log_probs, targets, halved, target_lengths, reduction="none")
    found = reader.loss_terms((frames, targets, input_lengths, target_lengths))["task"]
    torch.testing.assert_close(found, (each / target_lengths)[each.isfinite()].mean())
    with pytest.raises(TypeError, match="input_lengths must be given"):
        reader.loss_terms((frames, targets))


def test_transcribing_leaves_the_module_as_it_was():
    reader = module(model=nn.Sequential(nn.Dropout(0.9), nn.Linear(6, CLASSES)))
    reader.model[1].eval()
    frames, before = spoken()[0], torch.random.get_rng_state()
    assert reader.transcribe(frames) == reader.transcribe(frames)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [part.training for part in (reader, reader.model, *reader.model)] == [True, True, True, False]


MODEL = {"class_path": "modules.digit_strings.ColumnReader", "init_args": {"channels": 4, "width": 8}}


def test_a_checkpoint_is_plain_and_brings_the_same_module_back(tmp_path):
    torch.manual_seed(0)
    reader = TranscriptionModule(
        MODEL,
        CTCLoss(blank=10, validate=False),
        alphabet=ALPHABET,
        beam_width=3,
        metrics={"words": WordErrorRate()},
        penalties=[L2Penalty(0.01)],
        optimizer=functools.partial(torch.optim.SGD, lr=0.05),
    )
    data = digit_strings(16, seed=0, test=False)
    data.tensors[1].sub_(1)  # the blank is class 10 here
    run = fit(reader, data=DataLoader(data, batch_size=8), val=DataLoader(data, batch_size=8))
    run.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = TranscriptionModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dict(loaded.hparams) == dict(reader.hparams)
    assert same(weights(loaded), weights(reader))
    assert loaded.eval().loss_terms(data[:])["task"] == reader.eval().loss_terms(data[:])["task"]
    assert loaded.predict_step(data[:], 0) == reader.predict_step(data[:], 0)
    assert (loaded.loss.blank, loaded.loss.validate, loaded.beam_width) == (10, False, 3)
    assert sorted(loaded.stage_metrics["val"].keys()) == ["val/char_error_rate", "val/words"]
    assert loaded.penalties["l2"].weight == 0.01
    assert type(loaded.configure_optimizers()) is torch.optim.SGD


def test_validating_before_training_changes_nothing():
    reader = module(optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    run, data = trainer(max_epochs=1), DataLoader([spoken()], batch_size=None)
    (before,) = run.validate(reader, data, verbose=False)
    run.fit(reader, data, data)
    assert {key: value.item() for key, value in run.callback_metrics.items() if key in before} == before


def test_training_logs_its_loss_and_penalties(tmp_path):
    data = DataLoader([spoken(n) for n in (6, 3)], batch_size=None)
    logger = CSVLogger(tmp_path, "", "")
    fit(module(penalties=[L2Penalty(0.1)]), data=data, log_every_n_steps=1, logger=logger)
    logged = read_metrics(tmp_path)
    for total, task, penalty in zip(
        *(logged[f"train/{key}"][1] for key in ("loss", "loss/task", "penalty/l2")), strict=True
    ):
        assert total == pytest.approx(task + penalty, rel=1e-6)
        assert penalty > 0


def verdict(reader: TranscriptionModule) -> OverfitOneBatch:
    probe = OverfitOneBatch(on_fail="warn")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "OverfitOneBatch FAILED")
        fit(reader, probe, data=strings_loader(16, batch_size=16), max_epochs=1)
    return probe.result


def test_one_batch_can_be_overfitted():
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
    result = verdict(TranscriptionModule(ColumnReader(4, 16), optimizer=optimizer))
    assert result.passed, str(result)
    assert result.floor == 0.0
    assert result.final < 0.1 * result.initial


def test_a_model_that_cannot_learn_is_found():
    class Cut(ColumnReader):
        def forward(self, images):
            columns = self.pictures(images).flatten(1, 2).transpose(1, 2).detach()
            return self.head(self.columns(columns)[0])

    result = verdict(TranscriptionModule(Cut(4, 8)))
    assert result.passed is False
    assert "no gradient reaches 2 trainable parameter(s) (model.pictures.0.weight" in result.cause


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's compiler, when first imported
def test_compiling_leaves_the_keys_of_the_checkpoint():
    reader = module(compile=True)
    before = set(weights(reader))
    reader.configure_model()
    assert set(weights(reader)) == before
    assert reader.model._compiled_call_impl is not None


def test_it_trains_in_mixed_precision():
    run = fit(module(), data=DataLoader([spoken()], batch_size=None), precision="bf16-mixed", max_epochs=60)
    before = module().loss_terms(spoken())["task"]
    assert run.lightning_module.loss_terms(spoken())["task"] < before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "net"}, TypeError, "model must be an nn.Module or its spec"),
        ({"loss": nn.CTCLoss()}, TypeError, "loss must be a CTCLoss or its spec"),
        ({"loss": CTCLoss(reduction="none")}, ValueError, "loss.reduction must be 'mean'; got 'none'"),
        ({"beam_width": 0}, ValueError, "beam_width must be one or more, or None"),
        ({"metrics": {"a": 1}}, TypeError, r"metrics\['a'\] must be a torchmetrics.Metric"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        module(**arguments)


def test_outputs_that_are_no_logits_are_named():
    with pytest.raises(ValueError, match=r"output of the model must be logits of shape \[N, T, C\]; got \(54, 5\)"):
        module(model=nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, CLASSES))).loss_terms(spoken())
    with pytest.raises(ValueError, match="got 'tuple'"):
        module(model=nn.LSTM(6, CLASSES)).transcribe(spoken()[0])
    with pytest.raises(ValueError, match="beam_width must be"):
        module().transcribe(spoken()[0], beam_width=0)
