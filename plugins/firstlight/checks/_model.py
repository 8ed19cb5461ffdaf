"""FL2xx: the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from firstlight._require import some
from firstlight.checks._check import Check, Evidence, Finding, Severity

_FEWEST_SAMPLES = 64  # in which no unit has a slope, before it is called dead


@final
class NonfiniteForward(Check):
    """The loss is not finite on the first batch.

    Rule: the loss of an untrained step is NaN or infinite though the data are finite; an error. The first module whose
    output is not finite is named.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL201", "nonfinite_forward", "the first loss is finite", 5
    needs = ("loss/finite",)
    why = "The first step turns every weight into NaN."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        if not evidence["loss/finite"]:
            where = evidence.get("model/first_nonfinite", "")
            yield self.finding(
                Severity.ERROR,
                value="not finite",
                threshold="finite",
                where=where or "the loss",
                message=f"the first value that is not finite comes from {where or 'the loss itself'}",
                advice="look for log(0), a division by 0, a square root of 0, an exponential of large values, or fp16",
            )


@final
class DeadUnits(Check):
    """Units that no sample wakes.

    Rule: in one activation at least 95 % of the units have no slope for any of the samples seen (256 or more, where
    the data has them); an error. Units are counted, not entries: a healthy deep narrow net shows half of its entries
    at zero.
    Evidence: faulty 0.97 to 1, healthy at most 0.5.
    Known false alarms: experts and top-k gates that are sparse by design.
    """

    code, name, title, rank = "FL202", "dead_units", "units respond to inputs", 28
    needs = ("activations/dead", "activations/samples")
    why = "A unit without slope passes no gradient: the layers before it do not learn."

    def missing(self, evidence: Evidence) -> str | None:
        reason = super().missing(evidence)
        if reason is None and evidence["activations/samples"] < _FEWEST_SAMPLES:
            reason = f"{evidence['activations/samples']} samples are too few to call a unit dead"
        return reason

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        if self.missing(evidence) is not None:
            return
        worst = max(evidence["activations/dead"].items(), key=lambda item: item[1], default=("", 0.0))
        if worst[1] >= 0.95:
            yield self.finding(
                Severity.ERROR,
                value=worst[1],
                threshold=0.95,
                where=worst[0],
                message=f"{worst[1]:.0%} of its units have no slope for any sample",
                advice="set the biases before it to 0, standardize the inputs, or use an activation with a slope",
            )


@final
class Saturation(Check):
    """Squashing activations that sit at their ends.

    Rule: more than half of the values that enter a hidden tanh lie beyond 2.5, or a hidden sigmoid beyond 5; an error
    if the user's optimizer does not learn the batch, else a fact. The output of the network is not counted.
    Evidence: faulty 0.8 to 1, healthy at most 0.09.
    Known false alarms: gates that are shut on purpose.
    """

    code, name, title, rank = "FL203", "saturation", "activations are not saturated", 29
    needs = ("activations/saturated",)
    why = "At the ends the slope is near zero, and little gradient passes."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        worst = max(evidence["activations/saturated"].items(), key=lambda item: item[1], default=("", 0.0))
        if worst[1] > 0.5:
            suffers = evidence.get("pair/own", 0.0) > 0.5
            yield self.finding(
                Severity.ERROR if suffers else Severity.INFO,
                value=worst[1],
                threshold=0.5,
                where=worst[0],
                message=f"{worst[1]:.0%} of what enters it lies beyond the range where it has a slope",
                advice="smaller initial weights (Xavier with the activation's gain), standardized inputs, a norm layer",
            )


@final
class SymmetricInit(Check):
    """All units of a layer start the same.

    Rule: all rows of a weight are equal, and not zero; or a weight is zero and no gradient ever reaches it; an error.
    Known false alarms: a scale that is meant to start level; weights of one element a row are not looked at.
    """

    code, name, title, rank = "FL204", "symmetric_init", "units start different", 6
    needs = ("model/identical_rows",)
    why = "Units that start alike get the same gradient and stay alike: the layer is one unit wide."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        reached = {*evidence.get("pair/reached", ()), *evidence.get("pair/reference_reached", ())}
        # A last layer or a branch that starts at zero opens in a few steps; where no gradient comes, none will.
        shut = [name for name in evidence.get("model/zero", ()) if name not in reached]
        names = evidence["model/identical_rows"] + (shut if "pair/own" in evidence else [])
        if names:
            yield self.about(
                names,
                message=f"all units of {some(names)} have the same weights",
                advice="initialize with random values: firstlight.initializers.initialize_(module)",
            )


@final
class ConstantOutput(Check):
    """The outputs are the same for every input.

    Rule: over all samples seen no output varies by more than a millionth of the outputs' size, and the batch is not
    learned (a last layer that starts at zero is constant too, and learns); or by more than a thousandth, and the user's
    optimizer gets nowhere; an error.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL205", "constant_output", "outputs depend on inputs", 33
    needs = ("network/variation",)
    why = "What does not depend on the input cannot be fitted to it."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        variation = evidence["network/variation"]
        nearly = variation < 1e-3 and evidence.get("pair/own", 0.0) > 0.9
        if nearly or (variation < 1e-6 and evidence.get("pair/own", 1.0) > 0.5):
            shape = evidence.get("network/shape", [])
            single = evidence.get("network/simplex") and shape[-1:] == [1]
            advice = (
                "a softmax over a single output is always 1: use a sigmoid, or logits with their loss"
                if single
                else (
                    "look for a dead layer before the head, overwritten inputs, or a softmax over the wrong dimension"
                )
            )
            yield self.finding(
                Severity.ERROR,
                value=variation,
                threshold=1e-6,
                where="the last module",
                message=f"over all samples the outputs vary by {variation:.2g} of their size",
                advice=advice,
            )


@final
class LinearNetwork(Check):
    """Several layers that amount to one.

    Rule: mixing two inputs mixes their outputs in the same shares, to 1e-4, at the inputs' scale and ten times it, in a
    network of two matrices or more; an error, or a fact where a narrow layer shows that a low rank is wanted. Branches
    that start at zero and open in the trial are not judged.
    Known false alarms: deep linear networks in a study of them.
    """

    code, name, title, rank = "FL206", "linear_network", "the network is not linear", 45
    needs = ("network/curvature",)
    why = "Without a nonlinearity between them, layers collapse into one matrix: depth buys nothing."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        curvature = evidence["network/curvature"]
        # Branches that start at zero pass no gradient at first, and open in a few steps: then there is a curve.
        opening = set(evidence.get("gradient/zero", ())) & set(evidence.get("pair/reached", ()))
        if curvature < 1e-4 and not opening:
            yield self.finding(
                Severity.INFO if evidence.get("network/bottleneck") else Severity.ERROR,
                value=curvature,
                threshold=1e-4,
                message=f"outputs of mixed inputs are mixed outputs, to {curvature:.1g}",
                advice="put an activation (ReLU, GELU) between the layers",
            )


@final
class BatchMixing(Check):
    """The output of a sample depends on its neighbours in the batch.

    Rule: in eval mode the first or the last output moves by more than 1e-4 of the outputs' size when all other samples
    become copies of it; an error.
    Evidence: a transposed batch 0.8, healthy set-ups 0.
    Known false alarms: models of sets, and batch norm without running statistics.
    """

    code, name, title, rank = "FL207", "batch_mixing", "samples do not see each other", 7
    needs = ("network/mixing",)
    why = "A view or transpose that takes the batch for a feature mixes samples: none has inputs of its own."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        mixing = evidence["network/mixing"]
        if mixing > 1e-4:
            yield self.finding(
                Severity.ERROR,
                value=mixing,
                threshold=1e-4,
                where="the network",
                message=f"the output of a sample moves by {mixing:.2g} when the other samples change",
                advice="look for view, reshape or transpose over dimension 0, and for norms or softmax over it",
            )


@final
class EvalRandom(Check):
    """Two passes in eval mode differ.

    Rule: the same inputs through the last network call, twice, in eval mode, differ by more than 1e-5 of the outputs'
    size (1e-2 under autocast); an error. Models without targets, which may sample, are not judged.
    Evidence: dropout that stays on 0.87, healthy set-ups 0.
    Known false alarms: networks that sample on purpose in eval.
    """

    code, name, title, rank = "FL208", "eval_random", "eval mode is repeatable", 19
    needs = ("network/eval_difference",)
    why = "Noise that is meant for training stays on when the model is judged and used."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        difference = evidence["network/eval_difference"]
        limit = 1e-2 if "mixed" in str(evidence.get("plan/precision", "")) else 1e-5
        if difference > limit:
            yield self.finding(
                Severity.ERROR,
                value=difference,
                threshold=limit,
                where="the network",
                message=f"two passes in eval mode differ by {difference:.2g} of the outputs' size",
                advice="pass training=self.training to functional dropout, or use nn.Dropout",
            )


@final
class NotCausal(Check):
    """A next-token model that sees the next token.

    Rule: where targets are the inputs shifted by one, changing the last token moves an earlier output by more than 1e-4
    of the outputs' size; an error.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL209", "not_causal", "the future is hidden", 16
    needs = ("network/look_ahead",)
    why = "The answer stands in the input: the loss falls to nothing, and generation fails."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        moved = evidence["network/look_ahead"]
        if moved > 1e-4:
            yield self.finding(
                Severity.ERROR,
                value=moved,
                threshold=1e-4,
                where="the network",
                message=f"earlier outputs move by {moved:.2g} when the last token changes",
                advice="pass a causal mask (is_causal=True), and shift targets by one",
            )


@final
class StuckStatistics(Check):
    """Running statistics that do not follow.

    Rule: a layer in training mode that keeps running statistics has the same ones after a training step; an error.
    Known false alarms: layers in eval mode are frozen on purpose and not looked at.
    """

    code, name, title, rank = "FL210", "stuck_statistics", "running statistics follow", 20
    needs = ("network/stuck_statistics",)
    why = "In eval mode the layer normalizes with numbers that it never measured."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        names = evidence["network/stuck_statistics"]
        if names:
            yield self.about(
                names,
                message=f"the running mean of {some(names)} does not move in a training step",
                advice="set momentum above 0 (torch's default is 0.1; other libraries count the other share)",
            )


@final
class EvalMode(Check):
    """Trainable layers that are in eval mode while the module trains.

    Rule: a layer with trainable parameters of its own is in eval mode when training begins; a fact, or a warning if all
    layers are.
    Known false alarms: frozen batch norm whose scale is trained.
    """

    code, name, title, rank = "FL211", "eval_mode", "layers are in training mode", 64
    needs = ("model/in_eval_mode",)
    why = "Dropout is off and statistics stand still in these layers."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        names = evidence["model/in_eval_mode"]
        if names:
            yield self.finding(
                Severity.WARNING if evidence.get("model/in_eval") else Severity.INFO,
                value=float(len(names)),
                threshold=0.0,
                where=names[0],
                message=f"{some(names)} are in eval mode",
                advice="call module.train() before fit if that is not meant",
            )


@final
class Unregistered(Check):
    """Trainable tensors that the module does not know of.

    Rule: a module or a leaf tensor stands in a plain attribute, list, tuple or dict, is not among ``parameters()``, and
    the gradients of a step reach it; an error. What only stands there, or serves without gradients, is not named.
    Known false alarms: a teacher in a list that was trained in the same process and keeps its gradients; give it
    ``requires_grad_(False)``.
    """

    code, name, title, rank = "FL212", "unregistered", "all parameters are registered", 4
    needs = ("model/unregistered",)
    why = "The optimizer does not see these tensors, checkpoints do not hold them, and .to(device) leaves them behind."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        names = evidence["model/unregistered"]
        if names:
            yield self.about(
                names,
                message=f"{some(names)} get gradients and are not among the module's parameters",
                advice="use nn.ModuleList, nn.ModuleDict or nn.ParameterList in place of a list or dict",
            )


@final
class BadInit(Check):
    """Initial weights from which the user's optimizer gets nowhere, though from others it learns.

    Rule: the user's optimizer does not learn one batch, and with weights of ``initialize_`` on a copy it does, at the
    same rate; an error.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL213", "bad_init", "initial weights can be trained", 35
    needs = ("pair/initialized",)
    why = "The signal dies, or everything saturates, before the first step; no learning rate mends that."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        share = evidence["pair/initialized"]
        if share < 0.5:
            yield self.finding(
                Severity.ERROR,
                value=evidence.get("pair/own", 1.0),
                threshold=0.9,
                message=f"from these weights {evidence.get('pair/own_name', 'it')} does not learn one batch, "
                f"from fresh ones it gets to {share:.2g} of the best constant's loss",
                advice="initialize after what each layer feeds: firstlight.initializers.initialize_(module)",
            )


@final
class MostlyFrozen(Check):
    """Too little is trainable to learn anything.

    Rule: less than a hundredth of the parameters are trainable, and neither optimizer learns one batch; an error.
    Known false alarms: none known; a frozen trunk whose head learns is not named.
    """

    code, name, title, rank = "FL214", "mostly_frozen", "enough is trainable", 50
    needs = ("model/parameters", "model/trainable", "pair/own")
    why = "What is frozen stays as it is, and the rest cannot make up for it."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        total, trainable = evidence["model/parameters"], evidence["model/trainable"]
        fails = evidence["pair/own"] > 0.9 and evidence.get("pair/reference", 1.0) > 0.9
        if fails and trainable < 0.01 * total:
            yield self.finding(
                Severity.ERROR,
                value=trainable / max(total, 1),
                threshold=0.01,
                message=f"{trainable} of {total} parameters are trainable",
                advice="look for requires_grad_(False) that covers more than was meant",
            )


@final
class StepRaises(Check):
    """The training step raises on a batch of its own loader.

    Rule: the step, or the way back through its loss, run on a copy with nothing else around it, raises an error inside
    a module, a function of torch or a loss; an error. What the step itself lacks on a copy (a logger, the Trainer's
    data), memory and what a device has not implemented do not count.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL215", "step_raises", "the training step runs", 3
    needs = ("model/step_error",)
    why = "The run ends with this error at its first step."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        said = evidence["model/step_error"]
        if said:
            yield self.finding(
                Severity.ERROR,
                value=said,
                threshold="no error",
                where=evidence.get("model/step_error_at", ""),
                message=f"the training step raises {said}"[:300],
                advice="call training_step(next(iter(loader)), 0) by hand; inputs need the model's shape and dtype",
            )
