"""FL1xx: the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from firstlight.checks._check import Check, Evidence, Finding, Severity


@final
class NonfiniteData(Check):
    """Inputs or targets hold NaN or infinity.

    Rule: any value that is not finite in up to 2048 training samples is an error: one such value makes the loss of its
    batch NaN, and the next step all weights.
    Known false alarms: NaN as "missing" in a model that masks it; ignore the finding with that reason.
    """

    code, name, title, rank = "FL101", "nonfinite_data", "all values are finite", 1
    needs = ("data/nonfinite",)
    why = "One NaN in a batch makes its loss NaN, and the step after it every weight."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        count = evidence["data/nonfinite"]
        if count:
            yield self.finding(
                Severity.ERROR,
                value=float(count),
                threshold=0.0,
                where=str(evidence.get("data/nonfinite_where", "")),
                message=f"{count} values of the training data are NaN or infinite",
                advice="drop or impute them before batches are made",
            )


@final
class InputScale(Check):
    """The inputs that the model receives are far too wide or too narrow.

    Rule: the standard deviation over everything that the first module receives, after all transforms, is above 10 or
    below 0.02. An error where one batch is not learned, or the first loss is three times a constant's; else a fact: a
    norm layer in front undoes it.
    Evidence: faulty set-ups show 96 (pixels as bytes), 222 (a raw table), 0.0015 (scaled twice); healthy ones 0.38 to
    1.
    Known false alarms: physical units that a model scales by hand inside.
    """

    code, name, title, rank = "FL102", "input_scale", "inputs have unit scale", 10
    needs = ("inputs/std",)
    why = "Weights are made for inputs about one wide; others saturate or kill units in the first steps."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        std, mean = evidence["inputs/std"], evidence["inputs/mean"]
        if 0.02 <= std <= 10 or std != std:
            return
        # Proof is a set-up that does not learn; a wide input that is learned from (a norm layer in front) is a fact.
        suffers = evidence.get("pair/own", 0.0) > 0.5 or _ratio(evidence) > 3
        yield self.finding(
            Severity.ERROR if suffers else Severity.INFO,
            value=std,
            threshold="0.02 to 10",
            message=f"what the model receives has standard deviation {std:.4g} (mean {mean:.4g})",
            advice=f"standardize the inputs: (x - {mean:.4g}) / {std:.4g}, with the numbers of the training split",
        )


def _ratio(evidence: Evidence) -> float:
    initial, constant = evidence.get("loss/initial"), evidence.get("loss/constant")
    return initial / constant if initial is not None and constant and constant > 0 else 1.0


@final
class ColumnScale(Check):
    """Columns of a table differ in width by more than a hundred.

    Rule: the largest standard deviation of a column over the median one is above 100; a warning.
    Known false alarms: one-hot columns beside counts.
    """

    code, name, title, rank = "FL103", "column_scale", "columns have like scales", 12
    needs = ("inputs/column_ratio",)
    why = "The widest column drowns the others: the rate that suits it is far too small for them."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        ratio = evidence["inputs/column_ratio"]
        if ratio > 100:
            yield self.finding(
                Severity.WARNING,
                value=ratio,
                threshold=100.0,
                where=f"column {evidence.get('inputs/widest')}",
                message=f"the widest column is {ratio:.3g} times as wide as the median one",
                advice="standardize each column with mean and deviation of the training split, or take its logarithm",
            )


@final
class TargetScale(Check):
    """Targets of a regression are far from unit scale, or far from zero.

    Rule: their standard deviation is above 10 or below 0.01, or their mean is more than 30 deviations from zero, and
    the trial does not get one batch below half of the best constant's loss; an error.
    Evidence: a faulty set-up shows 7.5e4; healthy ones about 1.
    Known false alarms: a module that scales targets inside its step learns its batch, and nothing is said.
    """

    code, name, title, rank = "FL104", "target_scale", "targets have unit scale", 11
    needs = ("targets/std",)
    why = "A fresh network gives values about one: to reach such targets its last layer travels for most of the run."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        std, mean = evidence["targets/std"], evidence["targets/mean"]
        far = abs(mean) > 30 * std and abs(mean) > 10
        if std != std or not (std > 10 or std < 0.01 or far):
            return
        constant, ended = evidence.get("loss/constant"), evidence.get("pair/own_loss")
        # below zero there is no half: densities and counts have such losses
        left = ended / constant if constant and constant > 0 and ended is not None else evidence.get("pair/own", 1.0)
        yield self.finding(
            Severity.ERROR if not left <= 0.5 else Severity.INFO,
            value=std,
            threshold="0.01 to 10, mean near 0",
            message=f"targets have standard deviation {std:.4g} and mean {mean:.4g}",
            advice=f"standardize targets: (y - {mean:.4g}) / {std:.4g}, and undo it for the metric",
        )


@final
class LabelRange(Check):
    """Class indices that the model has no output for.

    Rule: a label is negative (and not the ignored index) or at least the number of outputs; an error. On a GPU such a
    label ends the process.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL105", "label_range", "labels fit the outputs", 2
    needs = ("targets/label_range",)
    why = "The loss reads beside the outputs: an exception on a CPU, the end of the process on a GPU."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        low, high, classes = evidence["targets/label_range"]
        if low < 0 or high >= classes:
            shift = (
                "subtract 1 from the labels" if low == 1 and high == classes else f"give the model {high + 1} outputs"
            )
            yield self.finding(
                Severity.ERROR,
                value=f"{low} to {high}",
                threshold=f"0 to {classes - 1}",
                message=f"labels go from {low} to {high}, but the model has {classes} outputs",
                advice=shift if low >= 0 else "labels must not be negative, but for the ignored index",
            )


@final
class OneClass(Check):
    """All labels are the same.

    Rule: 100 labels or more, and a single class among them; an error.
    Known false alarms: none known; a sorted stream whose first 2048 samples are of one class is caught here too.
    """

    code, name, title, rank = "FL106", "one_class", "there are classes to tell apart", 3
    needs = ("targets/classes",)
    why = "With one class every constant is perfect, and nothing is learned."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        if evidence["targets/classes"] < 2 and evidence.get("data/samples", 0) >= 100:
            yield self.finding(
                Severity.ERROR,
                value=1.0,
                threshold=2.0,
                message="all labels seen are of one class",
                advice="look at how labels are made: a wrong column, an integer division, a sorted file",
            )


@final
class ImbalanceUnweighted(Check):
    """A rare class whose samples weigh no more than the others.

    Rule: the rarest class has less than a tenth of its even share, and at equal outputs one of its samples pulls less
    than twice as hard as one of the commonest class, or it has less than half and pulls less than a quarter as hard; a
    warning. Weights, focal factors and samplers are seen by what
    they do.
    Known false alarms: rarity that is meant to be learned as it is (calibrated probabilities).
    """

    code, name, title, rank = "FL107", "imbalance_unweighted", "rare classes are weighed", 62
    needs = ("targets/least_share", "loss/rare_weight")
    why = "The best constant answer ignores the rare class, and accuracy does not show it."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        share, pull = evidence["targets/least_share"], evidence["loss/rare_weight"]
        if (share < 0.1 and pull < 2) or (share < 0.5 and pull < 0.25):
            yield self.finding(
                Severity.WARNING,
                value=share,
                threshold=0.1,
                where=f"class {evidence.get('targets/rarest')}",
                message=f"the rarest class has {share:.2g} of an even share and weighs {pull:.2g} times a common one",
                advice="give the loss class weights or draw classes evenly, and watch a balanced metric",
            )


@final
class SortedOrder(Check):
    """Batches come sorted by label.

    Rule: the mean entropy of the labels of a batch, over the first ten, is below half (warning) or a fifth (error) of
    that of the same labels in random order.
    Evidence: sorted digits 0.06; shuffled ones about 1 at every batch size.
    Known false alarms: a curriculum or a time series that is meant to come in order.
    """

    code, name, title, rank = "FL108", "sorted_order", "batches are shuffled", 13
    needs = ("data/order_ratio",)
    why = "Each batch pulls all outputs towards its one class: the model forgets the others every few steps."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        ratio = evidence["data/order_ratio"]
        if ratio < 0.5:
            yield self.finding(
                Severity.ERROR if ratio < 0.2 else Severity.WARNING,
                value=ratio,
                threshold=0.5,
                where="the training loader",
                message=f"labels within a batch vary {ratio:.2g} times as much as in random order",
                advice="pass shuffle=True to the training DataLoader",
            )


@final
class SplitShift(Check):
    """Validation inputs are not scaled like training inputs.

    Rule: the median over columns of the difference of means is above half a standard deviation, or the overall
    deviations differ by more than a factor three; a warning, or an error beyond a factor of ten. Of 16 to 63 samples:
    four standard errors of a mean, and the factor of ten alone.
    Evidence: clean splits of five data sets: at most 0.11, and 0.97 to 1.06.
    Known false alarms: a validation set that really is from elsewhere.
    """

    code, name, title, rank = "FL109", "split_shift", "splits are scaled alike", 14
    needs = ("splits/shift", "splits/ratio")
    why = "The model is judged on inputs that it has never been shown the like of."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        shift, ratio = evidence["splits/shift"], evidence["splits/ratio"]
        samples = evidence.get("splits/samples", 64)
        factor = 3 if samples >= 64 else 10
        if shift > max(0.5, 4 / samples**0.5) or not 1 / factor < ratio < factor:
            yield self.finding(
                Severity.ERROR if ratio > 10 or ratio < 0.1 else Severity.WARNING,
                value=max(shift, ratio),
                threshold="0.5 deviations, factor 3",
                where="the validation loader",
                message=f"validation inputs are {ratio:.3g} times as wide, and {shift:.2g} deviations away",
                advice="apply the training split's normalization to validation and test",
            )


@final
class SplitOverlap(Check):
    """Validation samples that are training samples.

    Rule: more of the validation inputs stand in the training data exactly than twice the share of training samples that
    repeat an earlier one, which is what records that really repeat show, and 1 %; an error. Inputs of few elements, a
    training split that repeats itself, and batches with a mask that chooses among the samples are not judged.
    Known false alarms: records that repeat more often than they do within the training split.
    """

    code, name, title, rank = "FL110", "split_overlap", "splits share no sample", 15
    needs = ("splits/shared", "splits/unique", "inputs/elements")
    why = "A score on samples that were trained on says nothing about new ones."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        shared, unique = evidence["splits/shared"], evidence["splits/unique"]
        by_chance = 0.01 + 2 * (1 - unique)
        if evidence["inputs/elements"] >= 8 and unique > 0.9 and shared > by_chance:
            yield self.finding(
                Severity.ERROR,
                value=shared,
                threshold=by_chance,
                where="the validation loader",
                message=f"{shared:.1%} of the validation samples stand in the training data",
                advice="split before anything is copied or augmented, by a key that a sample has one of",
            )


@final
class NoLabelSignal(Check):
    """Labels that have nothing to do with their inputs.

    Rule: the nearest neighbours of a training input predict its label no better than chance (more than one of 199
    permutations of the labels do as well). An error where the validation split does show a signal, and three times that
    of the training split: training labels were moved apart from their inputs. Elsewhere an error only if a short
    training does not carry over to held-out samples either.
    Known false alarms: labels that only a product of many features tells (parity), or high-resolution images.
    """

    code, name, title, rank = "FL111", "no_label_signal", "labels belong to their inputs", 9
    needs = ("labels/p_value",)
    why = "The model can only memorize: what it learns holds for no other sample."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        p_value, gain = evidence["labels/p_value"], evidence["labels/gain"]
        other, other_gain = evidence.get("labels/val_p_value", 1.0), evidence.get("labels/val_gain", 0.0)
        apart = other <= 0.01 and other_gain > 0.05 + 3 * max(gain, 0.0)
        carries = evidence.get("labels/held_out_gain")
        if apart or (p_value > 0.01 and carries is not None and carries < 0.02):
            told = "; those of the validation split do" if apart else ", nor does a short training on the other half"
            yield self.finding(
                Severity.ERROR,
                value=p_value,
                threshold=0.01,
                where="the training labels",
                message=f"near inputs do not have like labels (gain {gain:.2g}, p = {p_value:.2f}){told}",
                advice="see where inputs and labels are joined: was one of them shuffled, sorted or filtered alone?",
            )


@final
class TargetCopiesInput(Check):
    """Targets that are the inputs themselves, token by token.

    Rule: the whole-number targets equal the tokens that the network is given, in every place; an error.
    Known false alarms: masked models, which hide some tokens, differ in those.
    """

    code, name, title, rank = "FL113", "target_copies_input", "targets are not the inputs", 5
    needs = ("targets/copy_inputs",)
    why = "The answer stands in the input: the model learns to copy it, and nothing about what comes next."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        if evidence["targets/copy_inputs"]:
            yield self.finding(
                Severity.ERROR,
                value="equal",
                threshold="different",
                where="the targets",
                message="every target is the token that stands in the same place of the input",
                advice="shift the targets by one: inputs tokens[:, :-1], targets tokens[:, 1:]",
            )


@final
class DegenerateData(Check):
    """Inputs that are all the same, or mostly copies.

    Rule: every column is constant, or more than half of the rows repeat another; an error for constants, a warning for
    copies (inputs of few elements are not judged, nor a sampler that draws with replacement).
    Known false alarms: oversampling by a sampler that does not say so in an attribute ``replacement``.
    """

    code, name, title, rank = "FL112", "degenerate_data", "samples differ", 8
    needs = ("inputs/duplicate_share", "inputs/elements")
    why = "Where inputs are alike there is nothing to tell labels apart by."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        constant, copies = evidence.get("inputs/constant_share", 0.0), evidence["inputs/duplicate_share"]
        if constant >= 1:
            yield self.finding(
                Severity.ERROR,
                value=constant,
                threshold=1.0,
                message="every element of the inputs has the same value in all samples",
                advice="look at what the data set returns: one file read again and again, a buffer that is overwritten",
            )
        elif copies > 0.5 and evidence["inputs/elements"] >= 8:
            yield self.finding(
                Severity.WARNING,
                value=copies,
                threshold=0.5,
                message=f"{copies:.0%} of the training samples repeat another",
                advice="look at the sampler and at the index of __getitem__",
            )
