"""FL3xx: the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

from firstlight.checks._check import Check, Evidence, Finding, Severity


def _suffers(evidence: Evidence) -> bool:
    """Whether the user's own optimizer learns nothing of the batch; a part of it is what a ranking may learn."""
    return bool(evidence.get("pair/own", 0.0) > 0.9)


@final
class InitialLoss(Check):
    """The first loss is far above that of a constant answer.

    Rule: the loss of the untrained model over the lowest loss that constant outputs reach on the same batch, and over
    that of outputs that are all zero, under the user's own loss: above 3 (and 0.2 more) an error, above 2 a fact. For
    balanced classes under cross-entropy both have ln C, but the rule needs no such formula. A fact, too, where most
    parameters are frozen and the batch is learned: what is frozen was trained before, and for another task. Not asked
    where outputs of one network are held against each other.
    Evidence: faulty 14 to 4900, healthy 0.8 to 1.5.
    Known false alarms: a head that was trained on other labels and is trained further, with nothing frozen. A loss
    below the constant's is what a pretrained model shows, and is not named.
    """

    code, name, title, rank = "FL301", "init_loss", "the first loss is that of a guess", 40
    needs = ("loss/initial", "loss/constant")
    why = "The first steps are spent on undoing what the initialization or the scale of the inputs did."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        initial, constant = evidence["loss/initial"], evidence["loss/constant"]
        level = evidence.get("loss/level", math.nan)
        constant = max(constant, level) if math.isfinite(level) else constant
        if not (math.isfinite(initial) and math.isfinite(constant)) or constant <= 1e-3:
            return
        ratio = initial / constant
        frozen = 2 * evidence.get("model/trainable", 1) < evidence.get("model/parameters", 1)
        adapted = frozen and evidence.get("pair/own", 1.0) < 0.5
        if ratio > 2 and initial - constant > 0.2:
            yield self.finding(
                Severity.ERROR if ratio > 3 and not adapted else Severity.INFO,
                value=ratio,
                threshold=3.0,
                message=f"the first loss is {initial:.4g}, a constant output has {constant:.4g}",
                advice="initialize smaller (firstlight.initializers.initialize_) and standardize inputs and targets",
            )


@final
class SoftmaxTwice(Check):
    """A loss that takes logits is given probabilities.

    Rule: what reaches cross-entropy is never negative and sums to one over the classes; or all that reaches binary
    cross-entropy with logits lies between 0 and 1, and the head cannot give anything else; an error.
    Known false alarms: distillation on probabilities by a loss of its own is not cross-entropy, and not judged.
    """

    code, name, title, rank = "FL302", "softmax_twice", "the loss gets logits", 17
    needs = ("loss/given",)
    why = "The loss applies its own softmax or sigmoid: with the second one it cannot fall near its floor."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        given = evidence["loss/given"]
        low, high = evidence.get("network/reach", [None, None])
        closed = low is not None and high is not None and low >= -1e-3 and high <= 1 + 1e-3
        if given == "softmax" or (given == "perhaps sigmoid" and closed):
            which = "cross-entropy" if given == "softmax" else "binary cross-entropy with logits"
            last = "softmax" if given == "softmax" else "sigmoid"
            yield self.finding(
                Severity.ERROR,
                value="probabilities",
                threshold="logits",
                where="the loss",
                message=f"{which} is given probabilities",
                advice=f"remove the {last} at the end of the model: the loss applies its own",
            )


@final
class TargetOutOfRange(Check):
    """The head cannot give what the targets ask for.

    Rule: with every output that the head can give at all (found by random parameters of growing size) at least a fifth
    of the best constant's loss is left over what free outputs reach; an error.
    Evidence: a sigmoid before targets of unit variance leaves 0.7; healthy heads leave 0.
    Known false alarms: bounded heads on targets with outliers beyond them, by intent.
    """

    code, name, title, rank = "FL303", "target_out_of_range", "the head reaches the targets", 18
    needs = ("loss/reachable",)
    why = "No training moves an output to where its activation does not go."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        left = evidence["loss/reachable"]
        if left > 0.2:
            low, high = evidence.get("network/reach", [None, None])
            span = f"{'-inf' if low is None else f'{low:.3g}'} to {'inf' if high is None else f'{high:.3g}'}"
            target = ""
            if "targets/low" in evidence:
                target = f"; targets go from {evidence['targets/low']:.3g} to {evidence['targets/high']:.3g}"
            yield self.finding(
                Severity.ERROR,
                value=left,
                threshold=0.2,
                where="the last module",
                message=f"outputs can only go from {span}{target}: {left:.0%} of the loss cannot be removed",
                advice="remove the activation at the end of the model, or scale the targets into its range",
            )


@final
class LossUnbounded(Check):
    """Outputs can push the loss below zero without end.

    Rule: targets are whole numbers, and along the loss's own slope it falls in proportion, far below zero; an error
    unless the head gives log-probabilities, which such a loss asks for.
    Known false alarms: rewards and densities; they have no whole-number targets.
    """

    code, name, title, rank = "FL304", "loss_unbounded", "the loss has a floor", 16
    needs = ("loss/unbounded",)
    why = "The optimizer makes outputs larger for ever; the loss falls and nothing is learned."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        if evidence["loss/unbounded"]:
            yield self.finding(
                Severity.ERROR,
                value="unbounded",
                threshold="bounded below",
                where="the loss",
                message="larger outputs lower the loss in proportion, below zero",
                advice="negative log-likelihood wants log-probabilities: use cross-entropy, or end in log_softmax",
            )


@final
class LossNotPerSample(Check):
    """The loss of a batch is not a mean over its samples.

    Rule: over nine splits of at most 32 samples the loss of the whole lies outside of those of the two parts by more
    than 1e-4 of it, though a mean, weighted or not, lies between them. An error if the loss stays the same when outputs
    that follow the targets go to other samples (shapes were broadcast against each other), if what a loss of classes is
    given sums to one over the samples, or if nothing of the batch is learned; else a fact: ranking, contrastive and
    overlap losses couple samples by design.
    Evidence: ``[B]`` against ``[B, 1]`` 0.014 to 0.07 and more with the split by target; a softmax over the batch 0.1
    to 0.5; healthy losses below 2e-7.
    Known false alarms: supervised contrastive losses that do not learn one batch for another reason.
    """

    code, name, title, rank = "FL305", "loss_not_per_sample", "the loss is a mean over samples", 15
    needs = ("loss/coupling",)
    why = "Every output is held against every target: the best answer is one constant for all."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        coupling, pairs = evidence["loss/coupling"], evidence.get("loss/pairs_all", False)
        shapes = evidence.get("loss/broadcast", []) if pairs else []
        doubled = abs(evidence.get("loss/doubling", 1.0) - 2.0) < 0.05
        if coupling > 1e-4 and not (doubled and not pairs):
            over_batch = evidence.get("loss/shares_of_batch", False)
            shown = f": outputs {shapes[0]} against targets {shapes[1]}" if shapes else ""
            shown = shown or ("; what it is given sums to one over the samples, not over the classes" * over_batch)
            yield self.finding(
                Severity.ERROR if pairs or over_batch or _suffers(evidence) else Severity.INFO,
                value=coupling,
                threshold=1e-4,
                where="the loss",
                message=f"the loss of a batch lies {coupling:.2g} outside of those of its parts{shown}",
                advice="give outputs and targets the same shape (target[:, None]), and check the dim of every softmax",
            )


@final
class LossSummed(Check):
    """The loss grows with the batch.

    Rule: the same samples twice give twice the loss (to 5 %); an error where the user's optimizer fails and the
    reference learns, else a fact.
    Known false alarms: sums that the learning rate was chosen for.
    """

    code, name, title, rank = "FL306", "loss_summed", "the loss does not grow with the batch", 27
    needs = ("loss/doubling",)
    why = "The step is as many times too long as the batch has samples, and changes with the last batch."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        ratio = evidence["loss/doubling"]
        if abs(ratio - 2.0) < 0.05:
            blamed = evidence.get("pair/own", 0.0) > 0.9 and evidence.get("pair/reference", 1.0) < 0.5
            yield self.finding(
                Severity.ERROR if blamed else Severity.INFO,
                value=ratio,
                threshold=1.0,
                where="the loss",
                message=f"the same batch twice has {ratio:.3g} times the loss",
                advice='use reduction="mean", or divide by the number of samples',
            )


@final
class LossDetached(Check):
    """The loss has no gradient.

    Rule: no loss of any batch wants a gradient; an error.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL307", "loss_detached", "the loss has a gradient", 3
    needs = ("loss/connected",)
    why = "Nothing can be learned from a number that does not know where it came from."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        if not evidence["loss/connected"]:
            yield self.finding(
                Severity.ERROR,
                value="no gradient",
                threshold="a gradient",
                where="training_step",
                message="the loss that training_step returns has no gradient",
                advice="look for detach(), .item(), numpy(), argmax or torch.no_grad on the way to the loss",
            )


@final
class Misaligned(Check):
    """A target pulls at the outputs of another sample or position.

    Rule: at level outputs, another class in one place of the targets changes the pull on the outputs of a different
    place more than on its own, and in one sample more than in all others together; or, where targets are the inputs
    shifted, not of the place at the same distance for three places; an error. A pull on many samples is coupling, and
    FL305's.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL308", "misaligned", "targets meet their outputs", 8
    needs = ("loss/offsets",)
    why = "Every output is trained towards the answer to another question."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        offsets = evidence["loss/offsets"]
        same_sample = all(offset[0] == 0 for offset in offsets)
        constant = all(offset == offsets[0] for offset in offsets)
        own = evidence.get("loss/own_targets", True)
        if not (same_sample and constant and (not own or not any(offsets[0]))):
            yield self.finding(
                Severity.ERROR,
                value=str(offsets),
                threshold="0 everywhere" if own else "constant",
                where="the loss",
                message=f"targets pull at outputs elsewhere: {offsets} places away",
                advice="bring classes into dimension 1 by transpose(1, 2), not by reshape; look for roll and flip",
            )


@final
class HeadClipped(Check):
    """Logits that cannot be negative, or not positive.

    Rule: with parameters of any size no output goes below zero (or none above), though a cross-entropy takes them for
    logits; a warning.
    Known false alarms: none known; log-probabilities are never positive, and are not named.
    """

    code, name, title, rank = "FL309", "head_clipped", "logits have both signs", 46
    needs = ("network/reach", "loss/takes_logits")
    why = "Half of the range is missing: classes whose unit is at its end get no gradient."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        low, high = evidence["network/reach"]
        half = (low is not None and low >= -1e-6 and high is None) or (
            high is not None and high <= 1e-6 and low is None
        )
        if half and evidence["loss/takes_logits"] and not evidence.get("network/log_simplex"):
            yield self.finding(
                Severity.WARNING,
                value=f"{'-inf' if low is None else 0} to {'inf' if high is None else 0}",
                threshold="-inf to inf",
                where="the last module",
                message="the outputs that cross-entropy takes for logits have one sign only",
                advice="remove the activation at the end of the model",
            )


@final
class PenaltyDominates(Check):
    """A penalty that is all that is learned.

    Rule: at the start more than half of the loss does not come from torch's loss functions, and after the trial the
    loss is down by half while the task's part is not below 90 % of its start; an error.
    Known false alarms: losses that are written out by hand and stand beside a small one of torch's.
    """

    code, name, title, rank = "FL310", "penalty_dominates", "the task outweighs penalties", 39
    needs = ("loss/initial", "loss/task", "pair/task_end", "pair/own_loss")
    why = "The optimizer shrinks the weights, since that lowers the loss more than the task does."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        total, task, end = evidence["loss/initial"], evidence["loss/task"], evidence["pair/task_end"]
        if task is None or not total > 0 or not task > 0:
            return
        share = 1 - task / total
        if share > 0.5 and end > 0.9 * task and evidence["pair/own_loss"] < 0.5 * total:
            yield self.finding(
                Severity.ERROR,
                value=share,
                threshold=0.5,
                where="the loss",
                message=f"{share:.0%} of the first loss is not the task's, whose part went {task:.3g} -> {end:.3g}",
                advice="lower the weight of the penalty until it is a small part of the first loss",
            )
