"""FL6xx: does it learn?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

from firstlight.checks._check import Check, Evidence, Finding, Severity


@final
class OptimizerFails(Check):
    """The user's optimizer does not learn one batch; a plain Adam does.

    Rule: on copies, from the same weights, the user's own optimizer with its schedule and clipping ends above 90 % of
    the best constant's loss, or not finite, in up to 1000 steps, and Adam at 0.003 or 0.02 gets below half of it in
    300; an error. What is wrong with the optimizer stands in the findings FL403 to FL506, where they apply.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL601", "optimizer_fails", "the optimizer learns one batch", 60
    needs = ("pair/own", "pair/reference")
    why = "Model, loss and data are sound enough for Adam: the fault lies in the optimizer's settings."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        own, reference = evidence["pair/own"], evidence["pair/reference"]
        if own > 0.9 and reference < 0.5:
            yield self.finding(
                Severity.ERROR,
                value=own,
                threshold=0.9,
                where="configure_optimizers",
                message=f"{evidence['pair/own_name']} leaves {own:.2g} of the best constant's loss on one batch, "
                f"{evidence['pair/reference_name']} {reference:.2g} in {evidence['pair/reference_steps']} steps",
                advice=f"start from {evidence['pair/reference_name']}, and change one setting at a time",
            )


@final
class CannotLearn(Check):
    """Neither the user's optimizer nor a plain Adam learns one batch.

    Rule: both end above 90 % of the best constant's loss (or of the first loss, where no constant can be tried), or not
    finite; an error. Where steps at a rate of zero raise the loss, as a queue does that fills with one batch, 90 % of
    what it rises to; where outputs of any kind leave a part of the loss, as gray pixels do of a binary cross-entropy,
    90 % of what lies above that part. What is wrong with model, loss or data stands in the other findings, where they
    apply.
    Known false alarms: a batch whose inputs repeat with other labels; a bottleneck that passes nothing.
    """

    code, name, title, rank = "FL602", "cannot_learn", "one batch can be learned", 70
    needs = ("pair/own", "pair/reference")
    why = "What cannot learn 32 samples will not learn the rest."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        own, reference = evidence["pair/own"], evidence["pair/reference"]
        if own > 0.9 and reference > 0.9 and not self._above_floor(evidence) < 0.9:
            yield self.finding(
                Severity.ERROR,
                value=reference,
                threshold=0.9,
                message=f"one batch keeps {min(own, reference):.2g} of the best constant's loss, under "
                f"{evidence['pair/own_name']} and under {evidence['pair/reference_name']}",
                advice="look at labels, the form of the loss, and what the model does with its inputs",
            )

    def _above_floor(self, evidence: Evidence) -> float:
        """Return what is left of the loss, above what free outputs leave; NaN where they leave nothing."""
        floor, constant = evidence.get("loss/floor", math.nan), evidence.get("pair/constant", math.nan)
        if not 0 < floor < constant:
            return math.nan
        ended = min(evidence.get("pair/own_loss", math.nan), evidence.get("pair/reference_loss", math.inf))
        return float((ended - floor) / (constant - floor))


@final
class Slow(Check):
    """One batch is learned in part only.

    Rule: the user's optimizer ends between half and 90 % of the best constant's loss on one batch; a fact.
    Known false alarms: none; it is a fact.
    """

    code, name, title, rank = "FL603", "slow", "one batch is learned well", 90
    needs = ("pair/own", "pair/own_steps")
    why = "Something holds the loss up: a rate, a frozen part, a bottleneck, noise in the labels."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        own = evidence["pair/own"]
        if 0.5 <= own <= 0.9:
            yield self.finding(
                Severity.INFO,
                value=own,
                threshold=0.5,
                message=f"one batch falls to {own:.2g} of a constant's loss in {evidence['pair/own_steps']} steps",
                advice="try a higher and a lower learning rate, and more width",
            )


@final
class OverRegularized(Check):
    """Dropout that leaves nothing to learn from.

    Rule: neither optimizer learns one batch, and with every dropout of torch switched off a reference Adam does; an
    error.
    Evidence: rates up to 0.5 never fired.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL604", "over_regularized", "dropout leaves a signal", 34
    needs = ("pair/without_dropout",)
    why = "So much is dropped that two passes of one sample have nothing in common."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        share = evidence["pair/without_dropout"]
        if share < 0.5 and share < 0.7 * evidence.get("pair/reference", 1.0):
            yield self.finding(
                Severity.ERROR,
                value=evidence.get("pair/reference", 1.0),
                threshold=0.9,
                message=f"one batch is learned (to {share:.2g}) only with dropout switched off",
                advice="lower the dropout rate to 0.5 or less: p is the share that is dropped, not kept",
            )
