"""What a watch remembers of a run, on the host; and the evidence that it makes of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from firstlight.checks import Evidence
from firstlight.measures import fall, spikes

_REMEMBERED = 2000  # losses
_SAMPLES = 20
_CLIPPED = 1000  # samples that the share of clipped steps looks back on
_MET_LATE = "the run was met on its way: where its losses began is not known"
_ENOUGH = 300  # steps before "does not fall" means anything


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, (list, deque)) else value


@dataclass
class Readings:
    """Losses of all steps (thinned where there are many), and the last samples of everything else."""

    losses: list[float] = field(default_factory=list)  # the first ones, then one of ``stride``
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    spikes: list[int] = field(default_factory=list)  # steps at which the loss jumped
    spike_stays: bool = False

    met_late: bool = False  # resumed, and nothing is known of the steps before
    steps: int = 0
    stride: int = 1
    peak_rate: float = 0.0
    nonfinite_step: int | None = None
    nonfinite_where: str = ""
    nonfinite_rank: int | None = None  # if it was one of several ranks, and not all of them
    relative: dict[str, float] = field(default_factory=dict)  # gradient over weight, the last sample
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    dead: dict[str, float] = field(default_factory=dict)
    saturated: dict[str, float] = field(default_factory=dict)
    activation_samples: int = 0
    still: dict[str, int] = field(default_factory=dict)  # samples in which a parameter did not move
    moved: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    clipped: deque[float] = field(default_factory=lambda: deque(maxlen=_CLIPPED))  # share of the norm that was kept
    val: list[float] = field(default_factory=list)
    train_at_val: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return everything in plain values, which later readings leave alone."""
        return {part.name: _plain(getattr(self, part.name)) for part in fields(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned; what is not in it stays as it is."""
        for part in fields(self):
            if part.name in state:
                value, known = state[part.name], getattr(self, part.name)
                if isinstance(known, deque):
                    value = deque(value, maxlen=known.maxlen)
                elif isinstance(known, (set, list, dict)):
                    value = type(known)(value)
                setattr(self, part.name, value)

    def see_losses(self, losses: list[float]) -> None:
        """Take in the losses of further steps."""
        for loss in losses:
            self.steps += 1
            self.recent.append(loss)
            if self.steps % self.stride == 0 and math.isfinite(loss):
                self.losses.append(loss)
                if len(self.losses) > _REMEMBERED:
                    self.losses = self.losses[:100] + self.losses[100::2]
                    self.stride *= 2
        self._see_spikes(len(losses))

    def _see_spikes(self, new: int) -> None:
        """Look for jumps among the last ``new`` losses, and whether the loss came back from the last one."""
        recent = list(self.recent)
        first = self.steps - len(recent)
        usual = min(_median(recent[-100 - new : -new]), _median(recent[-new:])) if len(recent) > new else 0.0
        if self.spikes or max(recent[-new:], default=0.0) > 2 * usual > 0:  # else there is nothing to look at closely
            self._look(recent, first, new)

    def _look(self, recent: list[float], first: int, new: int) -> None:
        self.spikes += [first + at for at in spikes(recent) if first + at >= self.steps - new]
        self.spikes = self.spikes[-1000:]
        if self.spikes and self.steps - 75 < self.spikes[-1] + 50 <= self.steps and self.spikes[-1] >= first + 50:
            at = self.spikes[-1] - first
            self.spike_stays = self.spike_stays or min(recent[at + 1 : at + 51]) > 2 * _median(recent[:at]) > 0

    def evidence(self, *, several_optimizers: bool, planned: float, per_step: int = 1) -> Evidence:
        """Return what the checks ask for; what is not known yet is missing with its reason.

        ``planned`` are optimizer steps, of ``per_step`` batches each; what is counted here are batches.
        """
        found = Evidence({"watch/steps": self.steps, "watch/nonfinite_step": self.nonfinite_step})
        found.add({"watch/nonfinite_where": self.nonfinite_where, "watch/nonfinite_rank": self.nonfinite_rank})
        found.add({"watch/rise_before": self._rise()})
        found.add({"gradient/relative": self.relative, "watch/ratios": list(self.ratios)})
        if self.activation_samples:
            found.add({"activations/dead": self.dead, "activations/saturated": self.saturated})
            found.add({"activations/samples": self.activation_samples})
        else:
            found.skip("activations/", "no activation was seen: the net is compiled, or calls none that is known")
        long_enough = self.steps >= per_step * max(_ENOUGH, 0.1 * planned if math.isfinite(planned) else 0)
        if several_optimizers:
            found.skip("watch/fall", "several optimizers pull against each other")
        elif self.met_late:
            found.skip("watch/fall", _MET_LATE)
        elif not long_enough:
            found.skip("watch/fall", "too few steps")
        else:
            value = fall(self.losses)
            if math.isfinite(value):
                found.add({"watch/fall": value})
            else:
                found.skip("watch/fall", "the loss is not positive, or there are too few")
        if several_optimizers:
            found.skip("watch/spikes", "several optimizers pull against each other")
        else:
            found.add({"watch/spikes": [at for at in self.spikes if at > self.steps - 1000]})
            found.add({"watch/spike_stays": self.spike_stays})
        self._add_validation(found)
        if self.clipped:
            bitten = [kept for kept in self.clipped if kept < 1]
            found.add({"watch/clip_share": len(bitten) / len(self.clipped)})
            found.add({"watch/clip_kept": sorted(bitten)[len(bitten) // 2] if bitten else 1.0})
        else:
            found.skip("watch/clip", "nothing clips")
        if self.met_late:  # at the end of its schedule, maybe, where updates round to nothing
            found.skip("update/still", "the run was met on its way: what moved before is not known")
        else:
            found.add({"update/still": [n for n, times in self.still.items() if times >= 5 and n not in self.moved]})
        found.add({"pair/reached": sorted(self.reached), "pair/own_steps": self.steps})
        return found

    def _rise(self) -> float:
        recent = [loss for loss in list(self.recent)[-120:] if math.isfinite(loss)]
        if len(recent) < 20:
            return 1.0
        usual = sorted(recent[:-5])[len(recent[:-5]) // 2]
        return max(recent[-5:]) / usual if usual > 0 else 1.0

    def _add_validation(self, found: Evidence) -> None:
        if len(self.val) < 4:
            found.skip("watch/val_rise", "fewer than four validations")
            return
        best = min(self.val)
        last = self.val[-3:]
        rise = min(last) / best - 1 if best > 0 and self.val.index(best) < len(self.val) - 3 else 0.0
        at = self.val.index(best)
        falls = self.train_at_val[-1] < self.train_at_val[at]
        found.add({"watch/val_rise": rise, "watch/train_falls": falls})
