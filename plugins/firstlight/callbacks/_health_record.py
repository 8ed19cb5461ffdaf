"""HealthRecord: what one fit showed, as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight.callbacks._health_sample import Sample

# Without a logger, or with one that seldom writes, no more than this waits on the device.
MOST_UNREAD = 1000


class Place(NamedTuple):
    """Where in the run: the optimizer step as the Trainer counts it, the epoch and the batch, all from 0."""

    step: int
    epoch: int
    batch: int


class _Step(NamedTuple):
    """A step whose norms wait on the device; ``batches`` are those in its gradient, counted over the whole fit."""

    place: Place
    batches: range
    total: Tensor
    owners: Sequence[nn.Parameter]
    norms: Tensor


@dataclass
class _OptimizerRecord:
    name: str
    steps: int = 0
    clipped: float = 0.0
    nonfinite: int = 0
    norms: Sample = field(default_factory=Sample)
    rates: list[tuple[Any, Any]] = field(default_factory=list)  # lowest and highest of each group
    unread: list[_Step] = field(default_factory=list)
    unread_counts: list[Tensor] = field(default_factory=list)

    def see_rates(self, optimizer: Optimizer) -> None:
        rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
        seen = [*self.rates, *((rate, rate) for rate in rates[len(self.rates) :])]
        self.rates = [_widened(pair, rate) for pair, rate in zip(seen, rates, strict=False)]

    def as_dict(self, clips: bool) -> dict[str, Any]:
        lows, highs = ([float(pair[side]) for pair in self.rates] for side in (0, 1))
        return {
            "name": self.name,
            "steps": self.steps,
            "nonfinite_steps": self.nonfinite,
            "clip_rate": self.clipped / self.steps if clips else None,
            "gradient_norm": _quantiles(self.norms),
            "learning_rate": {"min": min(lows), "max": max(highs)} if lows else None,
        }


class HealthRecord:
    """Collect tensors at every step without reading them, and read them together where Lightning logs.

    ``at`` is where the run stands; ``named_parameters`` is the module's.
    """

    def __init__(self, named_parameters: Callable[[], Iterable[tuple[str, nn.Parameter]]]) -> None:
        self.at = Place(0, 0, 0)
        self.batches = 0
        self.first_nonfinite: dict[str, Any] | None = None
        self.loss: dict[str, Any] | None = None
        self._ratios: dict[str, Sample] = {}
        self._named_parameters = named_parameters
        self._optimizers: dict[Optimizer, _OptimizerRecord] = {}
        self._unread_losses: list[tuple[int, int, Tensor]] = []  # number of the batch, step, loss
        self._unread_ratios: list[tuple[str, Tensor]] = []
        self._window = 0  # the first batch of the step that is being made
        self._stepped_in = -1

    def step(self, optimizer: Optimizer, owners: Sequence[nn.Parameter], norms: Tensor, total: Tensor) -> None:
        record = self._optimizers.setdefault(optimizer, _OptimizerRecord(type(optimizer).__name__))
        record.steps += 1
        record.see_rates(optimizer)
        if self._stepped_in != self.batches:
            self._window, self._stepped_in = self._stepped_in + 1, self.batches
        batches = range(self._window, self.batches + 1)
        if self.first_nonfinite is not None:
            owners, norms = (), total  # the culprit is known: no need to keep them
        record.unread.append(_Step(self.at, batches, total, owners, norms))

    def count(self, optimizer: Optimizer, count: Tensor) -> None:
        if optimizer in self._optimizers:
            self._optimizers[optimizer].unread_counts.append(count)

    def values(self, values: Mapping[str, Tensor]) -> None:
        prefix = "update/ratio/"
        self._unread_ratios += [(k.removeprefix(prefix), v) for k, v in values.items() if k.startswith(prefix)]

    def batch(self, loss: Any) -> bool:
        """Take the end of a batch and its loss, if there is one; return whether an optimizer stepped in it."""
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._unread_losses.append((self.batches, self.at.step, loss))
        self.batches += 1
        return self._stepped_in == self.batches - 1

    @property
    def unread(self) -> int:
        return len(self._unread_losses) + sum(len(record.unread) for record in self._optimizers.values())

    def read(self) -> None:
        """Read everything that waits on the device."""
        losses = self._read_losses()
        first: list[tuple[_Step, str]] = []
        for record in self._optimizers.values():
            record.clipped += sum(_numbers(count[1] for count in record.unread_counts))
            for step, total in zip(record.unread, _numbers(step.total for step in record.unread), strict=True):
                if math.isfinite(total):
                    record.norms.add(total)
                else:
                    record.nonfinite += 1
                    first.append((step, record.name))
            record.unread, record.unread_counts = [], []
        if first and self.first_nonfinite is None:
            self.first_nonfinite = self._describe(*min(first, key=lambda pair: pair[0].place), losses)
        ratios = _numbers(value for _, value in self._unread_ratios)
        for (block, _), ratio in zip(self._unread_ratios, ratios, strict=True):
            if math.isfinite(ratio):
                self._ratios.setdefault(block, Sample()).add(ratio)
        self._unread_ratios = []

    def _read_losses(self) -> dict[int, float]:
        values = _numbers(loss for *_, loss in self._unread_losses)
        for (_, step, _), value in zip(self._unread_losses, values, strict=True):
            if self.loss is None:
                self.loss = {"first": value, "last": value, "best": value, "best_step": step}
            self.loss["last"] = value
            if value < self.loss["best"] or math.isnan(self.loss["best"]):
                self.loss |= {"best": value, "best_step": step}
        numbers = [number for number, *_ in self._unread_losses]
        self._unread_losses = []
        return dict(zip(numbers, values, strict=True))

    def _describe(self, step: _Step, optimizer: str, losses: Mapping[int, float]) -> dict[str, Any]:
        names = {id(parameter): (position, name) for position, (name, parameter) in enumerate(self._named_parameters())}
        finite = torch.isfinite(step.norms).tolist()
        bad = [names.get(id(p), (-1, "other")) for p, ok in zip(step.owners, finite, strict=True) if not ok]
        of_step = [losses[number] for number in step.batches if number in losses]
        last = of_step[-1] if of_step else None
        return {
            **step.place._asdict(),
            "optimizer": optimizer,
            "loss": next((loss for loss in of_step if not math.isfinite(loss)), last),
            # It spreads from the loss back to the input: the last one is nearest to where it began.
            "parameter": max(bad)[1] if bad else None,
            "nonfinite_gradients": len(bad),
            "gradients": len(step.owners),
        }

    def as_dict(self, clips: bool) -> dict[str, Any]:
        """Return the record as plain values; norms are those of the steps whose gradient was finite."""
        ratios = {
            block: {"median": ratio.quantile(0.5), "readings": ratio.count} for block, ratio in self._ratios.items()
        }
        return {
            "optimizers": [record.as_dict(clips) for record in self._optimizers.values()],
            "first_nonfinite": self.first_nonfinite,
            "update_ratio": ratios,
            "loss": self.loss,
        }


def _quantiles(sample: Sample) -> dict[str, float] | None:
    if not sample.count:
        return None
    return {"median": sample.quantile(0.5), "p90": sample.quantile(0.9), "max": sample.max}


def _widened(seen: tuple[Any, Any], rate: Any) -> tuple[Any, Any]:
    """Return the lowest and highest rate, new ones where they are tensors, which schedulers change in place."""
    low, high = seen
    if isinstance(rate, Tensor):
        return torch.minimum(torch.as_tensor(low), rate), torch.maximum(torch.as_tensor(high), rate)
    return min(low, rate), max(high, rate)


def _numbers(tensors: Iterable[Tensor]) -> list[float]:
    """Return the values of tensors of one element, in one reading from each device."""
    tensors = list(tensors)
    values = [0.0] * len(tensors)
    for device in {tensor.device for tensor in tensors}:
        here = [position for position, tensor in enumerate(tensors) if tensor.device == device]
        read = torch.stack([tensors[position].reshape(()) for position in here]).tolist()
        for position, value in zip(here, read, strict=True):
            values[position] = float(value)
    return values
