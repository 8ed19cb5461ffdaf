"""FL5xx: optimizers, schedules, updates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from firstlight._require import some
from firstlight.checks._check import Check, Evidence, Finding, Severity


def _own_fails(evidence: Evidence) -> bool:
    return bool(evidence.get("pair/own", 0.0) > 0.9)


@final
class OptimizerParams(Check):
    """The optimizer holds other tensors than the model.

    Rule: a trainable parameter of the module is in no optimizer, or an optimizer holds tensors that are not the
    module's; an error for the second, and for the first where they are reached by a gradient.
    Known false alarms: parameters that get gradients and are left out on purpose; freeze them with
    ``requires_grad_(False)``.
    """

    code, name, title, rank = "FL501", "optimizer_params", "optimizers hold the parameters", 4
    needs = ("optimizer/missing", "optimizer/foreign")
    why = "Steps change tensors that the model no longer uses, and those that it uses stay as they are."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        unreached = set(evidence.get("gradient/none", [])) - set(evidence.get("pair/reached", []))
        missing = [name for name in evidence["optimizer/missing"] if name not in unreached]
        foreign = evidence["optimizer/foreign"]
        if missing or foreign:
            stale = f"{foreign} tensor(s) of the optimizer are not the model's; " if foreign else ""
            yield self.finding(
                Severity.ERROR,
                value=float(len(missing) + foreign),
                threshold=0.0,
                where=missing[0] if missing else "configure_optimizers",
                message=f"{stale}{len(missing)} trainable parameter(s) are in no optimizer"
                + (f": {some(missing)}" if missing else ""),
                advice="build the optimizer last, in configure_optimizers, from self.parameters()",
            )


@final
class Ascending(Check):
    """Steps that raise the loss.

    Rule: the cosine between the optimizer's own update and the gradient of the task, read in eval mode, is above 0.2 in
    each of the first three steps, and the batch is not learned; an error.
    Evidence: -0.3 to -1 in healthy set-ups, 1 with ``maximize=True``.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL502", "ascending", "steps go downhill", 13
    needs = ("update/ascent",)
    why = "The optimizer climbs: the sign of the loss or of the step is turned around."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        ascent = evidence["update/ascent"]
        if ascent and min(ascent) > 0.2 and (_own_fails(evidence) or evidence.get("loss/unbounded")):
            yield self.finding(
                Severity.ERROR,
                value=min(ascent),
                threshold=0.2,
                where="configure_optimizers",
                message=f"updates go uphill: their cosine with the task's gradient is {min(ascent):.2g} or more",
                advice="look at the sign of the loss, and for maximize=True",
            )


@final
class RateTooHigh(Check):
    """A learning rate at which one batch cannot be learned, and a lower one at which it can.

    Rule: the user's optimizer does not learn one batch, a reference Adam does, and so does the user's optimizer at a
    tenth or a hundredth of its rate; an error. Where those do not either, updates above a tenth of the weights are one.
    Evidence: updates of healthy set-ups are 4e-4 to 0.014 of the weights (a new head 0.053), of faulty ones 0.06 to
    600.
    Known false alarms: none known; a high rate that learns is not named.
    """

    code, name, title, rank = "FL503", "lr_too_high", "the learning rate is not too high", 37
    needs = ("pair/own", "update/ratio")
    why = "Each step overshoots: the loss rises or jumps about, and units die."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        factor, ratio = evidence.get("pair/better_factor", 1.0), evidence["update/ratio"]
        worse = (
            _own_fails(evidence)
            and evidence.get("pair/reference", 1.0) < 0.9
            and not ratio <= 0.1
            and not _other_cause(evidence)
        )
        if factor < 1 or (factor == 1 and worse):
            yield self.finding(
                Severity.ERROR if _own_fails(evidence) else Severity.WARNING,
                value=ratio,
                threshold=0.1,
                where="configure_optimizers",
                message=f"{evidence['pair/own_name']} does not learn one batch; "
                f"its updates are {ratio:.2g} of the weights",
                advice=_rate_advice(evidence)
                if factor < 1
                else "lower the learning rate by a factor of a thousand or more",
            )


@final
class RateTooLow(Check):
    """A learning rate at which one batch is not learned in a thousand steps, and a higher one at which it is.

    Rule: the user's optimizer does not learn one batch in up to 1000 steps, a reference Adam does, and so does the
    user's optimizer at ten to ten thousand times its rate; an error, or a fact where the batch is learned in part.
    Where those do not either, updates below 1e-6 of the weights are one.
    Evidence: updates of healthy set-ups are 4e-4 to 0.014 of the weights, of faulty ones 0 to 2.5e-5.
    Known false alarms: none known; a low rate that learns is not named.
    """

    code, name, title, rank = "FL504", "lr_too_low", "the learning rate is not too low", 38
    needs = ("pair/own", "update/ratio")
    why = "The run ends long before the weights have moved."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        factor, ratio = evidence.get("pair/better_factor", 1.0), evidence["update/ratio"]
        still = (
            _own_fails(evidence)
            and evidence.get("pair/reference", 1.0) < 0.9
            and ratio < 1e-6
            and not _other_cause(evidence)
        )
        if factor > 1 or (factor == 1 and still):
            yield self.finding(
                Severity.ERROR if _own_fails(evidence) else Severity.INFO,
                value=ratio,
                threshold=1e-4,
                where="configure_optimizers",
                message=f"{evidence['pair/own_name']} does not learn one batch in {evidence['pair/own_steps']} steps; "
                f"its updates are {ratio:.2g} of the weights",
                advice=_rate_advice(evidence)
                if factor > 1
                else "raise the learning rate by a factor of ten thousand or more",
            )


def _other_cause(evidence: Evidence) -> bool:
    return bool(min(evidence.get("pair/initialized", 1.0), evidence.get("pair/undecayed", 1.0)) < 0.5)


def _rate_advice(evidence: Evidence) -> str:
    rate = max(evidence.get("optimizer/rates", [0.0])) * evidence["pair/better_factor"]
    return f"set the learning rate near {rate:.2g}"


@final
class ScheduleShape(Check):
    """A schedule that takes the rate away.

    Rule: the real scheduler, stepped at its real interval for the planned steps, or the schedule of a callback, keeps
    the rate below 1e-3 of its peak for the last four fifths of the run, or is still rising at its end and stays below
    half of the base rate; an error.
    Known false alarms: a run that is meant to be cut short.
    """

    code, name, title, rank = "FL505", "schedule_shape", "the schedule lasts the run", 23
    needs = ("schedule/peak", "schedule/rest")
    why = "Most of the run is spent at a rate at which nothing moves."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        peak, rest, steps = evidence["schedule/peak"], evidence["schedule/rest"], evidence["schedule/steps"]
        holder = evidence.get("schedule/holder")
        mend = "is the scheduler stepped every batch with a period in epochs? Set interval and length alike"
        if steps < 20:
            return
        if rest < 1e-3 * peak:
            yield self.finding(
                Severity.ERROR,
                value=rest / max(peak, 1e-30),
                threshold=1e-3,
                where=holder or "configure_optimizers",
                message=f"after a fifth of the run the rate is {rest:.2g}, {rest / max(peak, 1e-30):.1g} of its peak",
                advice=f"give {holder} the length of the run, or leave total_steps out" if holder else mend,
            )
        elif evidence["schedule/steps"] == evidence["schedule/planned"] and peak < 0.5 * evidence["schedule/base"]:
            yield self.finding(
                Severity.ERROR,
                value=peak / evidence["schedule/base"],
                threshold=0.5,
                where=holder or "configure_optimizers",
                message=f"the rate reaches {peak:.2g} of {evidence['schedule/base']:.2g} before the run ends",
                advice="shorten the warm-up to a few percent of the run: is it counted in epochs or in steps?",
            )


@final
class DecayDominates(Check):
    """Weight decay stronger than the task.

    Rule: the user's optimizer does not learn one batch, and on a copy with a decay of zero it does; an error.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL506", "decay_dominates", "decay does not win", 25
    needs = ("optimizer/decay", "pair/undecayed")
    why = "Weights are pulled to zero faster than the loss can hold them."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        decay, share = evidence["optimizer/decay"], evidence["pair/undecayed"]
        if share < 0.5:
            yield self.finding(
                Severity.ERROR,
                value=decay,
                threshold="0.1 under AdamW, 1e-3 elsewhere",
                where="configure_optimizers",
                message=f"with weight decay {decay:.3g} one batch is not learned, without it is (to {share:.2g})",
                advice="lower weight_decay to 0.01 to 0.1 under AdamW, 1e-4 under SGD; Adam's own is L2, not decay",
            )


@final
class NeverMoves(Check):
    """Parameters that are in an optimizer, have a gradient, and stay where they are.

    Rule: after the training of a copy a trainable parameter whose gradient is at least 1e-4 of the largest is bit for
    bit what it was; an error.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL507", "never_moves", "every parameter moves", 34
    needs = ("update/still", "pair/reached")
    why = "They keep their initial values: their group has a rate of zero, or their update rounds to nothing."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        reached, missing = set(evidence["pair/reached"]), set(evidence.get("optimizer/missing", []))
        share = evidence.get("gradient/share", {})
        # A bias before a norm layer gets rounding errors for a gradient, and rounding keeps it where it is.
        still = [n for n in evidence["update/still"] if n in reached and n not in missing and share.get(n, 1.0) > 1e-4]
        if still and evidence.get("pair/own_steps", 0) >= 3:
            yield self.about(
                still,
                message=f"{some(still)} did not move in {evidence.get('pair/own_steps')} steps",
                advice="look at the learning rate of their group, and whether bf16 weights can hold so small a change",
            )


@final
class GroupTooSlow(Check):
    """A group whose updates are nothing beside those of the others.

    Rule: the median update of a tensor of two dimensions or more is below 1e-6 of its weights while that of all tensors
    is above 1e-5, and a gradient reaches it; an error.
    Known false alarms: rates that are meant to be so low; freeze such a group.
    """

    code, name, title, rank = "FL508", "group_too_slow", "all groups move", 36
    needs = ("update/blocks", "update/ratio", "pair/reached")
    why = "These weights keep their initial values for all that the run can tell."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        share, reached = evidence.get("gradient/share", {}), set(evidence["pair/reached"])
        moving = evidence["update/blocks"]
        usual = max(evidence["update/ratio"], max(moving.values(), default=0.0))
        slow = [n for n, r in moving.items() if 0 < r < 1e-6 and n in reached and share.get(n, 1.0) > 1e-4]
        if slow and usual > 1e-5:
            yield self.finding(
                Severity.ERROR,
                value=moving[slow[0]],
                threshold=1e-6,
                where=slow[0],
                message=f"updates of {some(slow)} are {moving[slow[0]]:.1g} of the weights, others {usual:.1g}",
                advice="look at the learning rate of their parameter group",
            )
