"""What a watch remembers of a run, on the host; and the evidence that it makes of it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from firstlight.checks import Evidence
from firstlight.measures import fall, spikes

_REMEMBERED = 2000  # losses
_SAMPLES = 20
_ENOUGH = 300  # steps before "does not fall" means anything


@dataclass
class Readings:
    """Losses of all steps (thinned where there are many), and the last samples of everything else."""

    losses: list[float] = field(default_factory=list)  # the first ones, then one of ``stride``
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    steps: int = 0
    stride: int = 1
    nonfinite_step: int | None = None
    nonfinite_where: str = ""
    relative: dict[str, float] = field(default_factory=dict)  # gradient over weight, the last sample
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    dead: dict[str, float] = field(default_factory=dict)
    saturated: dict[str, float] = field(default_factory=dict)
    activation_samples: int = 0
    still: dict[str, int] = field(default_factory=dict)  # samples in a row in which a parameter did not move
    reached: set[str] = field(default_factory=set)
    clipped: list[float] = field(default_factory=list)  # share of the norm that was kept, one a sample
    val: list[float] = field(default_factory=list)
    train_at_val: list[float] = field(default_factory=list)

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

    def evidence(self, *, several_optimizers: bool, planned: float) -> Evidence:
        """Return what the checks ask for; what is not known yet is missing with its reason."""
        found = Evidence({"watch/steps": self.steps, "watch/nonfinite_step": self.nonfinite_step})
        found.add({"watch/nonfinite_where": self.nonfinite_where, "watch/rise_before": self._rise()})
        found.add({"gradient/relative": self.relative, "watch/ratios": list(self.ratios)})
        if self.activation_samples:
            found.add({"activations/dead": self.dead, "activations/saturated": self.saturated})
            found.add({"activations/samples": self.activation_samples})
        else:
            found.skip("activations/", "no activation was seen: the net is compiled, or calls none that is known")
        long_enough = self.steps >= max(_ENOUGH, 0.1 * planned if math.isfinite(planned) else 0)
        if several_optimizers:
            found.skip("watch/fall", "several optimizers pull against each other")
        elif not long_enough:
            found.skip("watch/fall", "too few steps")
        else:
            value = fall(self.losses)
            if math.isfinite(value):
                found.add({"watch/fall": value})
            else:
                found.skip("watch/fall", "the loss is not positive, or there are too few")
        recent = list(self.recent)
        positions = spikes(recent) if len(recent) > 150 and not several_optimizers else []
        first = self.steps - len(recent)
        found.add({"watch/spikes": [first + position for position in positions]})
        found.add({"watch/spike_stays": self._stays(recent, positions)})
        self._add_validation(found)
        if self.clipped:
            bitten = [kept for kept in self.clipped if kept < 1]
            found.add({"watch/clip_share": len(bitten) / len(self.clipped)})
            found.add({"watch/clip_kept": sorted(bitten)[len(bitten) // 2] if bitten else 1.0})
        else:
            found.skip("watch/clip", "nothing clips")
        stuck = [name for name, samples in self.still.items() if samples >= 5]
        found.add({"update/still": stuck, "pair/reached": sorted(self.reached), "pair/own_steps": self.steps})
        return found

    def _rise(self) -> float:
        recent = [loss for loss in list(self.recent)[-120:] if math.isfinite(loss)]
        if len(recent) < 20:
            return 1.0
        usual = sorted(recent[:-5])[len(recent[:-5]) // 2]
        return max(recent[-5:]) / usual if usual > 0 else 1.0

    @staticmethod
    def _stays(recent: list[float], positions: list[int]) -> bool:
        """Whether the loss has not come back in the 50 steps after the first spike."""
        if not positions or len(recent) < positions[0] + 50:
            return False
        before = sorted(recent[max(0, positions[0] - 100) : positions[0]])
        after = recent[positions[0] + 1 : positions[0] + 51]
        return min(after) > 2 * before[len(before) // 2] > 0

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
