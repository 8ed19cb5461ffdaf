"""FL61x: what shows only while training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from firstlight.checks._check import Check, Evidence, Finding, Severity


@final
class NonfiniteLoss(Check):
    """The loss became NaN or infinite while training.

    Rule: one loss that is not finite; an error. The batch is run again on a copy, and the first module whose output or
    parameter is not finite is named.
    Known false alarms: steps that a loss scaler of 16-bit training skips on purpose show in gradients, not in the loss.
    """

    code, name, title, rank = "FL611", "nonfinite_loss", "the loss stays finite", 1
    needs = ("watch/nonfinite_step",)
    why = "From here on every weight is NaN, unless something skips the step."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        step = evidence["watch/nonfinite_step"]
        if step is not None:
            where = str(evidence.get("watch/nonfinite_where", ""))
            rose = evidence.get("watch/rise_before", 1.0)
            rank = evidence.get("watch/nonfinite_rank")
            loss = "the loss" if rank is None else f"the loss of rank {rank}"
            grew = f"; the loss had grown {rose:.3g} times in the steps before" if rose > 3 else ""
            yield self.finding(
                Severity.ERROR,
                value=float(step),
                threshold="finite",
                where=where or "the loss",
                message=f"{loss} is not finite at step {step}; {where or 'the loss'} is the first to show it{grew}",
                advice="lower the learning rate or clip gradients"
                if rose > 3
                else "look at the batch of this step, and for log(0), division by 0 and overflow",
            )


@final
class NotLearning(Check):
    """The loss does not fall.

    Rule: after a tenth of the planned steps and at least 300, the median loss of the last 50 steps is
    above 98 % of that of the first 20, and so is the lowest median in between; a warning. Not judged with several
    optimizers, whose losses pull against each other.
    Evidence: healthy set-ups end at 0.58 of where they began or lower, faulty ones at 0.95 and above.
    Known false alarms: fine-tuning that begins near its end; a weight of a term that grows while training.
    """

    code, name, title, rank = "FL612", "not_learning", "the loss falls", 60
    needs = ("watch/fall",)
    why = "So many steps without progress do not turn into progress by themselves."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        fall, steps = evidence["watch/fall"], evidence["watch/steps"]
        if fall > 0.98:
            yield self.finding(
                Severity.WARNING,
                value=fall,
                threshold=0.98,
                message=f"after {steps} steps the loss has been no lower than {fall:.3g} of where it began",
                advice="run the preflight: firstlight check, or Preflight() among the callbacks",
            )


@final
class LossSpikes(Check):
    """The loss jumps, again and again or without coming back.

    Rule: a loss more than twice of what 95 of the 100 before it came to, and more than eight deviations (1.48 of the
    median absolute deviation of its logarithm) above their median: three such in the last 1000 steps, or one from which
    the loss has not come back in 50; a warning.
    Known false alarms: none known; noisy small batches, and mixed ones among plain ones, are no jumps. Where losses are
    of two kinds in like numbers it may see no jump at all.
    """

    code, name, title, rank = "FL613", "loss_spikes", "the loss does not jump", 55
    needs = ("watch/spikes",)
    why = "Jumps throw away progress, and often come before the loss is lost altogether."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        spikes, stayed = evidence["watch/spikes"], evidence.get("watch/spike_stays", False)
        if len(spikes) >= 3 or stayed:
            yield self.finding(
                Severity.WARNING,
                value=float(len(spikes)),
                threshold=3.0,
                where=f"step {spikes[0]}",
                message=f"the loss jumped at steps {', '.join(map(str, spikes[:5]))}"
                + (", and stayed" if stayed else ""),
                advice="clip gradients at the usual norm, warm the rate up for longer, or look at these batches",
            )


@final
class Overfitting(Check):
    """Validation gets worse while training gets better.

    Rule: the best validation loss lies at least three evaluations back and is more than 5 % below the last three, while
    the training loss fell; a fact: the metric may still improve.
    Known false alarms: small validation sets, though their noise is rarely 5 % three times in a row.
    """

    code, name, title, rank = "FL614", "overfitting", "validation keeps up", 80
    needs = ("watch/val_rise", "watch/train_falls")
    why = "What is learned now holds for the training samples only."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        rise = evidence["watch/val_rise"]
        if rise > 0.05 and evidence["watch/train_falls"]:
            yield self.finding(
                Severity.INFO,
                value=rise,
                threshold=0.05,
                message=f"the validation loss is {rise:.0%} above its best, three evaluations in a row",
                advice="stop early with restore_best=True, or regularize: augmentation, dropout, weight decay",
            )


@final
class UpdateDrift(Check):
    """Updates far too long or too short for many steps.

    Rule: the median over tensors of update over weight was above 0.1, or below 1e-6, at each of the last 20 samples
    taken at more than a tenth of the peak rate; a warning where the loss does not fall, else a fact.
    Evidence: healthy 4e-4 to 0.014.
    Known false alarms: none known at this severity.
    """

    code, name, title, rank = "FL615", "update_drift", "updates fit the weights", 50
    needs = ("watch/ratios",)
    why = "Too long a step overshoots, too short a one gets nowhere."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        ratios = evidence["watch/ratios"]
        if len(ratios) < 20:
            return
        low, high = min(ratios), max(ratios)
        if low > 0.1 or high < 1e-6:
            stuck = evidence.get("watch/fall", 0.0) > 0.9
            yield self.finding(
                Severity.WARNING if stuck else Severity.INFO,
                value=ratios[-1],
                threshold="1e-6 to 0.1",
                message=f"updates were {low:.2g} to {high:.2g} of the weights at the last {len(ratios)} samples",
                advice="lower the learning rate" if low > 0.1 else "raise the learning rate",
            )


@final
class ClippingShare(Check):
    """Clipping that bites at most steps.

    Rule: more than half of the steps sampled were clipped; a fact (Google's tuning playbook advises a lower rate), or a
    warning where the median clipped step kept less than 5 % of its norm and the loss does not fall.
    Known false alarms: normalized updates by intent.
    """

    code, name, title, rank = "FL616", "clipping_share", "clipping is the exception", 52
    needs = ("watch/clip_share", "watch/clip_kept")
    why = "Where every step is clipped the clipping norm is the learning rate."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        share, kept = evidence["watch/clip_share"], evidence["watch/clip_kept"]
        if share > 0.5:
            stuck = evidence.get("watch/fall", 0.0) > 0.9
            yield self.finding(
                Severity.WARNING if kept < 0.05 and stuck else Severity.INFO,
                value=share,
                threshold=0.5,
                message=f"{share:.0%} of the steps were clipped, the usual one to {kept:.2g} of its norm",
                advice="clip at the 90th percentile of the norm, or lower the learning rate",
            )
