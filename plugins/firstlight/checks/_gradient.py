"""FL4xx: gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import final

from firstlight._require import some
from firstlight.checks._check import Check, Evidence, Finding, Severity


@final
class NoGradient(Check):
    """Trainable parameters that no gradient reaches.

    Rule: over all batches seen, and over the training of a copy, a trainable tensor gets no gradient at all: the
    graph is cut before it, or the loss does not use it; an error. What is in no optimizer either is outside by intent,
    such as a target net that was copied and not frozen.
    Known false alarms: heads that only some batches use, if none of the batches seen did.
    """

    code, name, title, rank = "FL401", "no_gradient", "gradients reach every parameter", 6
    needs = ("gradient/none",)
    why = "These parameters keep their random initial values for the whole run."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        outside = evidence.get("optimizer/missing", [])
        never = [name for name in _never(evidence, "gradient/none") if name not in outside]
        if never:
            yield self.about(
                never,
                where=evidence.get("gradient/cut", "") or never[0],
                message=f"no gradient reaches {some(never)}",
                advice="look for detach(), no_grad, argmax or .data after it, or freeze it with requires_grad_(False)",
            )


@final
class ZeroGradient(Check):
    """Trainable parameters whose gradient is exactly zero.

    Rule: over all batches seen, and over the training of a copy, the gradient of a whole tensor is exactly zero; an
    error, most often the symptom of dead units or of an output that does not move.
    Known false alarms: branches that start at zero open within a few steps, and are not named.
    """

    code, name, title, rank = "FL405", "zero_gradient", "gradients are not zero", 36
    needs = ("gradient/zero",)
    why = "These parameters keep their random initial values for the whole run."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        zero = _never(evidence, "gradient/zero")
        if zero:
            yield self.about(
                zero,
                message=f"the gradient of {some(zero)} is exactly zero on every batch",
                advice="look for a dead activation after it, or an output that does not depend on it",
            )


def _never(evidence: Evidence, key: str) -> list[str]:
    later = set(evidence.get("pair/reached", [])) | set(evidence.get("pair/reference_reached", []))
    return [name for name in evidence[key] if name not in later]


@final
class Vanishing(Check):
    """Gradients that die, or blow up, on the way to the first layers.

    Rule: over the weights of two dimensions and more, embeddings and frozen ones left out, the smallest gradient
    relative to its weight is below 1e-5 of the largest; an error if it still is after ten steps (zero-initialized
    branches open by then) and the batch is not learned. Where the largest lies before the smallest, and is above the
    inverse of it, the gradient explodes, and the largest is named.
    Evidence: faulty 4e-12 to 2e-3, healthy at least 0.016.
    Known false alarms: none known after the second reading.
    """

    code, name, title, rank = "FL402", "vanishing", "gradients reach the first layers", 30
    needs = ("gradient/relative",)
    why = "Layers whose gradient is a millionth of the others' do not train."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        first = {name: value for name, value in evidence["gradient/relative"].items() if value > 0}
        later = {name: value for name, value in evidence.get("gradient/later", {}).items() if name in first}
        if len(first) < 3:
            return
        weakest = min(first, key=lambda name: first[name])
        ratio = first[weakest] / max(first.values())
        if later and max(later.values()) > 0:
            ratio = max(ratio, later.get(weakest, 0.0) / max(later.values()))
        if ratio >= 1e-5 or evidence.get("pair/own", 1.0) <= 0.5:
            return
        strongest, names = max(first, key=lambda name: first[name]), list(first)
        # Neither alone: modules may be declared in another order than they run, and a loss may have any scale.
        explodes = names.index(strongest) < names.index(weakest) and first[strongest] * first[weakest] > 1
        found = self.finding(
            Severity.ERROR,
            value=ratio,
            threshold=1e-5,
            where=strongest if explodes else weakest,
            message=f"its gradient, relative to its weight, is {1 / ratio:.1g} times the smallest, of {weakest}"
            if explodes
            else f"its gradient, relative to its weight, is {ratio:.1g} of the largest",
            advice="residual connections; without a norm layer smaller initial weights; clip gradients meanwhile"
            if explodes
            else "ReLU-like activations with He initialization, residual connections, or a norm layer",
        )
        yield dataclasses.replace(found, name="exploding") if explodes else found


@final
class StaleGradients(Check):
    """Old gradients are applied again.

    Rule: an optimizer steps on a gradient that was there before its last step and was never cleared, in a run that
    declares no accumulation; an error. Gradients that gather between two steps are accumulation and not judged.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL403", "grad_accumulating", "gradients are cleared", 21
    needs = ("gradient/stale",)
    why = "Every step repeats all earlier ones: the sum of all gradients so far sets the direction."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        names = evidence["gradient/stale"]
        if names:
            yield self.about(
                names,
                message=f"gradients of {some(names)} from before the last step are still there at the next",
                advice="call optimizer.zero_grad() once a step, before the backward pass",
            )


@final
class ClipTiny(Check):
    """Clipping that takes almost all of the gradient.

    Rule: the clipping norm is below 5 % of the median gradient norm of the first steps; an error where the user's
    optimizer fails and the reference learns, else a fact: Adam does not feel it.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL404", "clip_tiny", "clipping leaves the gradient", 24
    needs = ("gradient/clip_norms", "plan/clip")
    why = "Every step has the clipped length, whatever the loss looks like: a learning rate in disguise."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        norms, clip = sorted(evidence["gradient/clip_norms"]), evidence["plan/clip"]
        if clip is None or not norms:
            return
        share = clip / max(norms[len(norms) // 2], 1e-12)
        if share < 0.05:
            blamed = evidence.get("pair/own", 0.0) > 0.9 and evidence.get("pair/reference", 1.0) < 0.5
            yield self.finding(
                Severity.ERROR if blamed else Severity.INFO,
                value=share,
                threshold=0.05,
                where="gradient_clip_val",
                message=f"the clipping norm {clip:.3g} is {share:.2g} of the usual gradient norm",
                advice=f"clip at about the 90th percentile of the norm: {norms[int(0.9 * (len(norms) - 1))]:.3g}",
            )


@final
class NonfiniteGradient(Check):
    """A finite loss with a gradient that is not.

    Rule: the loss of the first batches is finite, and the gradient of a parameter holds NaN or infinity; an error.
    Known false alarms: none known.
    """

    code, name, title, rank = "FL406", "nonfinite_gradient", "the first gradients are finite", 5
    needs = ("gradient/nonfinite", "loss/finite")
    why = "The first step turns the weights into NaN, though the loss looks well."

    def find(self, evidence: Evidence) -> Iterable[Finding]:
        names = evidence["gradient/nonfinite"]
        if names and evidence["loss/finite"]:
            yield self.about(
                names,
                message=f"the gradient of {some(names)} is not finite",
                advice="look for sqrt or norm at 0, 0 * inf, and torch.where over a branch that is not finite",
            )
