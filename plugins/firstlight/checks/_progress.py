"""FL6xx: does it learn?"""

from __future__ import annotations

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
    finite; an error. What is wrong with model, loss or data stands in the other findings, where they apply.
    Known false alarms: a batch whose inputs repeat with other labels; a bottleneck that passes nothing.
    """

    code, name, title, rank = "FL602", "cannot_learn", "one batch can be learned", 70
    needs = ("pair/own", "pair/reference")
    why = "What cannot learn 32 samples will not learn the rest."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        own, reference = evidence["pair/own"], evidence["pair/reference"]
        if own > 0.9 and reference > 0.9:
            yield self.finding(
                Severity.ERROR,
                value=reference,
                threshold=0.9,
                message=f"one batch keeps {min(own, reference):.2g} of the best constant's loss, under "
                f"{evidence['pair/own_name']} and under {evidence['pair/reference_name']}",
                advice="look at labels, the form of the loss, and what the model does with its inputs",
            )
