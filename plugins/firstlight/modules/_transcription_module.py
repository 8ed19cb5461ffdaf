"""TranscriptionModule: sequences read by CTC, from images or sound to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.text import CharErrorRate

from firstlight._evaluating import evaluating
from firstlight._require import require
from firstlight.losses import CTCLoss
from firstlight.modules._ctc_decoding import beam_decode, greedy_decode
from firstlight.modules._exportable import Exportable
from firstlight.modules._labeled_frames import labeled_frames
from firstlight.modules._objective_module import ObjectiveModule
from firstlight.modules._shared import Stage


@final
class TranscriptionModule(ObjectiveModule):
    """Train ``model`` to read sequences of labels, without being told where each label is; the term is named ``task``.

    ``model`` maps inputs to logits ``[N, T, C]``: for each of T frames one for every label and one for the blank,
    whose class is the loss's ``blank``. T must be at least the number of labels, plus one between equal neighbors.

    Batches are ``(inputs, targets)``, ``(inputs, targets, input_lengths, target_lengths)``, or a mapping with the keys
    ``"input"``, ``"target"`` and perhaps ``"input_lengths"``, ``"target_lengths"``. Targets are ``[N, S]``, padded;
    without their lengths they are padded with the blank. Input lengths count frames of the logits; without them all
    frames count. A batch for prediction may also be the inputs alone.

    Validation and test decode, and report the character error rate: edits over all samples and ranks, by labels over
    all samples and ranks. Their steps return ``{"loss", "output", "target"}``, the last two lists of strings;
    prediction returns ``{"labels": list of lists}``, with an alphabet also ``"text"``.

    Logs: ``<stage>/loss``, ``<stage>/loss/task`` (nats a label), ``<stage>/char_error_rate`` for ``val`` and ``test``,
    and each of ``metrics``.

    Args:
        model: inputs to logits. Give a spec, or ``model=`` again when loading: see :class:`SupervisedModule`.
        loss: default :class:`CTCLoss` with ``blank=0``, which leaves samples without an alignment out of the mean.
        alphabet: the character of each class in order, the blank's left out.
        beam_width: how many prefixes the decoder keeps; ``None`` decodes greedily, by the likeliest path.
        model_takes_lengths: call ``model(inputs, input_lengths)``, which returns logits and their lengths. The input
            lengths are then the model's own affair.
        metrics: further metrics of texts by name, such as ``torchmetrics.text.WordErrorRate``, given lists of strings
            (of the alphabet; without one, label k is the character of code k).
        penalties: see :class:`ObjectiveModule`.
        optimizer: see :class:`ObjectiveModule`.
        compile: compile ``model`` in place with :func:`torch.compile`; checkpoint keys stay the same.

    Raises:
        TypeError: a part of the wrong kind; a batch that is none of the above.
        ValueError: a loss that is not reduced to a mean, an alphabet of the wrong length, a beam below 1.

    >>> module = TranscriptionModule(nn.Linear(8, 11), alphabet="0123456789")
    >>> len(module.transcribe(torch.randn(2, 5, 8), beam_width=4))
    2
    """

    def __init__(
        self,
        model: nn.Module,
        loss: CTCLoss | None = None,
        *,
        alphabet: str | None = None,
        beam_width: int | None = None,
        model_takes_lengths: bool = False,
        metrics: Mapping[str, Metric] | None = None,
        penalties: Sequence[nn.Module] = (),
        optimizer: OptimizerCallable | None = None,
        compile: bool = False,  # noqa: A002  torch's word
    ) -> None:
        metrics = {"char_error_rate": CharErrorRate(), **(metrics or {})}
        super().__init__(penalties=penalties, metrics=metrics, optimizer=optimizer)
        loss = CTCLoss() if loss is None else loss
        require(isinstance(model, nn.Module), "model", model, "an nn.Module or its spec", error=TypeError)
        require(isinstance(loss, CTCLoss), "loss", loss, "a CTCLoss or its spec", error=TypeError)
        require(loss.reduction == "mean", "loss.reduction", loss.reduction, "'mean'")
        _check_beam_width(beam_width)
        self.model = model
        self.loss = loss
        self.alphabet = alphabet
        self.beam_width = beam_width
        self.model_takes_lengths = model_takes_lengths
        self._compile = compile

    def configure_model(self) -> None:
        if self._compile:
            # In place: torch.compile(model) would put "_orig_mod" into every key of the checkpoint.
            self.model.compile()
            self._compile = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        inputs, targets, input_lengths, target_lengths = labeled_frames(batch, blank=self.loss.blank)
        log_probs, lengths = self._log_probs(inputs, input_lengths)
        return {"task": self.loss(log_probs.transpose(0, 1), targets, lengths, target_lengths)}

    def num_valid(self, batch: Any) -> int:
        """Return the number of samples: the loss is a mean over them, not over their labels."""
        return len(labeled_frames(batch, blank=self.loss.blank).targets)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        inputs, input_lengths = batch, None
        if not isinstance(batch, Tensor):
            inputs, _, input_lengths, _ = labeled_frames(batch, blank=self.loss.blank)
        labels = self._decode(*self._log_probs(inputs, input_lengths), self.beam_width)
        return {"labels": labels} | ({} if self.alphabet is None else {"text": self._texts(labels)})

    def export_model(self, batch: Any) -> Exportable:
        """Return inputs, with their lengths if the model takes them, to its logits; decoding is left to the host."""
        if isinstance(batch, Tensor):
            return Exportable(self.model, (batch,))
        inputs, _, lengths, _ = labeled_frames(batch, blank=self.loss.blank)
        return Exportable(
            self.model, (inputs, lengths) if self.model_takes_lengths and lengths is not None else (inputs,)
        )

    @torch.no_grad()
    def transcribe(
        self, inputs: Any, input_lengths: Tensor | None = None, *, beam_width: int | None = None
    ) -> list[list[int]]:
        """Return the labels of each sample, in evaluation mode; decoded greedily, or by a beam search.

        A beam search runs on the host, in time proportional to ``N * T * C * beam_width``.

        Raises:
            ValueError: a beam below 1.
        """
        _check_beam_width(beam_width)
        with evaluating(self):
            return self._decode(*self._log_probs(inputs, input_lengths), beam_width)

    def _evaluate(self, batch: Any, stage: Stage) -> dict[str, Any]:
        inputs, targets, input_lengths, target_lengths = labeled_frames(batch, blank=self.loss.blank)
        log_probs, lengths = self._log_probs(inputs, input_lengths)
        terms = {"task": self.loss(log_probs.transpose(0, 1), targets, lengths, target_lengths)}
        loss = self.objective(terms, stage=stage, batch_size=len(targets))
        rows = zip(targets.tolist(), target_lengths.tolist(), strict=True)
        wanted = self._texts([row[:length] for row, length in rows])
        read = self._texts(self._decode(log_probs, lengths, self.beam_width))
        self.update_metrics(read, wanted, stage=stage)
        return {"loss": loss, "output": read, "target": wanted}

    def _log_probs(self, inputs: Any, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log-probabilities ``[N, T, C]`` and how many of their frames count."""
        if self.model_takes_lengths:
            require(lengths is not None, "input_lengths", None, "given: the model takes them", error=TypeError)
            logits, lengths = self.model(inputs, lengths)
        else:
            logits = self.model(inputs)
        ok = isinstance(logits, Tensor) and logits.ndim == 3
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        require(ok, "output of the model", found, "logits of shape [N, T, C]")
        num, frames, classes = logits.shape
        if self.alphabet is not None:
            expected = f"{classes - 1} characters, one for each class but the blank"
            require(len(self.alphabet) == classes - 1, "alphabet", self.alphabet, expected)
        if lengths is None:
            lengths = torch.full((num,), frames)
        return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)), lengths

    def _decode(self, log_probs: Tensor, lengths: Tensor, beam_width: int | None) -> list[list[int]]:
        if beam_width is None:
            return greedy_decode(log_probs, lengths, blank=self.loss.blank)
        return beam_decode(log_probs, lengths, blank=self.loss.blank, beam_width=beam_width)

    def _texts(self, labels: list[list[int]]) -> list[str]:
        if self.alphabet is None:
            return ["".join(map(chr, row)) for row in labels]
        letters = [*self.alphabet[: self.loss.blank], "", *self.alphabet[self.loss.blank :]]
        return ["".join(letters[label] for label in row) for row in labels]


def _check_beam_width(beam_width: int | None) -> None:
    require(beam_width is None or beam_width >= 1, "beam_width", beam_width, "one or more, or None to decode greedily")
