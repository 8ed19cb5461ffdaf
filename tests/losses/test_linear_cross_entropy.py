"""LinearCrossEntropyLoss: cross-entropy of a linear layer with every option, in chunks, and without its logits."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from losses.oracles import torch_reference
from torch import Tensor

from firstlight.losses import CrossEntropyLoss, LinearCrossEntropyLoss, _linear_cross_entropy, linear_cross_entropy_loss

LOGITS = torch.tensor([[2, 0, -1], [0.5, 1.5, 0], [1, 1, 1], [0, 0, 3]], dtype=torch.float64)
TARGET = torch.tensor([0, 2, -100, 1])
CLASS_WEIGHT = [1.0, 2.0, 3.0]
EXPECTED = {
    (False, 0.0): ([0.169846, 1.964369, 0, 3.094923], 5.229138, 1.743046),
    (False, 0.1): ([0.336513, 1.897702, 0, 2.994923], 5.229138, 1.743046),
    (True, 0.0): ([0.169846, 5.893106, 0, 6.189846], 12.252799, 2.042133),
    (True, 0.1): ([0.620164, 5.580003, 0, 5.889846], 12.090013, 2.015002),
}


@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize(("weighted", "smoothing"), EXPECTED)
def test_reference_values(weighted, smoothing, chunk):
    """The logits as hidden states and the identity for a weight."""
    each, total, mean = EXPECTED[weighted, smoothing]
    for reduction, expected in (("none", each), ("sum", total), ("mean", mean)):
        loss = LinearCrossEntropyLoss(
            class_weight=CLASS_WEIGHT if weighted else None,
            label_smoothing=smoothing,
            reduction=reduction,
            chunk_tokens=chunk,
        )
        actual = loss(LOGITS, torch.eye(3, dtype=torch.float64), TARGET)
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def head(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden, weight, target (one in three ignored) and bias."""
    hidden = torch.randn(*shape, 6, dtype=dtype).requires_grad_()
    weight, bias = torch.randn(11, 6, dtype=dtype).requires_grad_(), torch.randn(11, dtype=dtype).requires_grad_()
    target = torch.randint(11, shape).masked_fill(torch.rand(shape) < 1 / 3, -100)
    return hidden, weight, target, bias


def plain(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    z_loss: float,
    reduction: str,
) -> Tensor:
    logits, flat = F.linear(hidden, weight, bias).reshape(-1, len(weight)), target.reshape(-1)
    losses = F.cross_entropy(logits, flat, class_weight, reduction="none", label_smoothing=smoothing)
    share = (flat != -100).to(losses)
    if class_weight is not None:
        share = share * class_weight[flat.clamp(min=0)]
    losses = losses + z_loss * share * logits.logsumexp(-1).square()
    return {"none": losses.reshape(target.shape), "sum": losses.sum(), "mean": losses.sum() / share.sum()}[reduction]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_combination_equals_full_logits_with_all_gradients(with_bias, chunk, reduction):
    hidden, weight, target, bias = head(3, 5)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    for class_weight, smoothing, z_loss in itertools.product((None, torch.rand(11).double()), (0.0, 0.1), (0.0, 1e-2)):
        ours = linear_cross_entropy_loss(
            hidden,
            weight,
            target,
            bias if with_bias else None,
            class_weight=class_weight,
            label_smoothing=smoothing,
            z_loss=z_loss,
            chunk_tokens=chunk,
            reduction=reduction,
        )
        theirs = plain(hidden, weight, target, bias if with_bias else None, class_weight, smoothing, z_loss, reduction)
        torch.testing.assert_close(ours, theirs)
        upstream = torch.randn_like(theirs)
        expected = torch.autograd.grad(theirs, inputs, upstream)
        first = torch.autograd.grad(ours, inputs, upstream, retain_graph=True)
        torch.testing.assert_close(first, expected)
        again = torch.autograd.grad(ours, inputs, upstream, retain_graph=True)
        torch.testing.assert_close(again, expected)
        differentiable = torch.autograd.grad(ours, inputs, upstream, create_graph=True)
        torch.testing.assert_close(differentiable, expected)


def test_equals_the_reference_of_torch():
    reference = torch_reference("linear_cross_entropy_loss_reference")
    hidden, weight, target, bias = head(20)
    class_weight = torch.rand(11).double()
    for smoothing, reduction in itertools.product((0.0, 0.1), ("mean", "sum", "none")):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        theirs = reference(hidden, weight, target, bias, class_weight, -100, **options)
        ours = linear_cross_entropy_loss(hidden, weight, target, bias, class_weight=class_weight, **options)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.13 has it")
def test_equals_torchs_own_where_that_is_defined():
    hidden, weight, target, _ = head(20)
    theirs = F.linear_cross_entropy(hidden, weight, target, ignore_index=-100)
    ours = linear_cross_entropy_loss(hidden, weight, target)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-4}, {"reduction": "sum"}])
def test_nothing_but_padding_is_0_with_zero_gradients(options):
    """Torch's own has NaN for the loss and the gradients."""
    hidden, weight, target, bias = head(2, 4)
    loss = linear_cross_entropy_loss(hidden, weight, target.fill_(5), bias, ignore_index=5, **options)
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (hidden, weight, bias)):
        assert (gradient == 0).all()


def test_an_empty_batch_is_0():
    hidden, weight, target, _ = head(0)
    loss = linear_cross_entropy_loss(hidden, weight, target)
    loss.backward()
    assert loss == 0
    assert (weight.grad == 0).all()


def test_only_what_is_asked_for_gets_a_gradient():
    hidden, weight, target, bias = head(5)
    frozen = weight.detach()
    loss = linear_cross_entropy_loss(hidden, frozen, target, bias.detach())
    expected = plain(hidden, frozen, target, bias.detach(), None, 0.0, 0.0, "mean")
    torch.testing.assert_close(torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden))
    with torch.no_grad():
        assert not linear_cross_entropy_loss(hidden, weight, target).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_added_up_in_float32(dtype):
    """Many chunks of one token: a 16-bit sum over them would lose digits that this keeps."""
    hidden, weight, bias = torch.randn(512, 16), 0.3 * torch.randn(40, 16), 0.1 * torch.randn(40)
    target = torch.randint(40, (512,))
    rounded = [x.to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    ours = linear_cross_entropy_loss(rounded[0], rounded[1], target, rounded[2], chunk_tokens=1)
    theirs = linear_cross_entropy_loss(exact[0], exact[1], target, exact[2])
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for gradient, expected in zip(torch.autograd.grad(ours, rounded), torch.autograd.grad(theirs, exact), strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2, "class_weight": torch.rand(11)}])
def test_16_bit_products_with_float32_results(options, monkeypatch):
    """What CUDA computes, by products that round their operands as it does."""
    chunked = _linear_cross_entropy

    def product(self: object, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        assert b.dtype == torch.bfloat16
        return torch.mm(a.bfloat16().float(), b.float(), out=out)

    hidden, weight, target, bias = head(40, dtype=torch.float32)
    exact = linear_cross_entropy_loss(hidden, weight, target, bias, **options)
    expected = torch.autograd.grad(exact, (hidden, weight, bias))
    monkeypatch.setattr(chunked, "_multiplies_16_bit_into_32", lambda hidden: True)
    monkeypatch.setattr(chunked._Head, "product", product)
    rounded = linear_cross_entropy_loss(hidden.bfloat16(), weight, target, bias, chunk_tokens=7, **options)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)
    gradients = torch.autograd.grad(rounded, (hidden, weight, bias))
    for gradient, right in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, right, rtol=0, atol=2e-2 * float(right.abs().max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_compiled_as_one_graph():
    hidden, weight, target, bias = head(9)
    options = {"label_smoothing": 0.1, "z_loss": 1e-2, "chunk_tokens": 4}

    def call(*inputs: Tensor) -> Tensor:
        return linear_cross_entropy_loss(*inputs, **options)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(hidden, weight, target, bias)
    eager = call(hidden, weight, target, bias)
    torch.testing.assert_close(compiled, eager)
    gradients = [torch.autograd.grad(loss, (hidden, weight, bias)) for loss in (compiled, eager)]
    torch.testing.assert_close(*gradients)


def test_inside_autocast_it_is_float32():
    """Torch's own answers in bfloat16 there: 6.53125 for 6.513382."""
    hidden, weight, target, bias = head(30, dtype=torch.float32)
    outside = linear_cross_entropy_loss(hidden, weight, target, bias)
    with torch.autocast("cpu", torch.bfloat16):
        inside = linear_cross_entropy_loss(hidden, weight, target, bias)
        inside.backward()
    assert inside.dtype == torch.float32
    assert inside == outside


def test_z_loss_alone():
    """Equal logits z over V classes: ln V + z_loss (z + ln V)^2."""
    hidden, weight = torch.ones(2, 1), torch.full((4, 1), 3.0)
    loss = linear_cross_entropy_loss(hidden, weight, torch.tensor([0, 1]), z_loss=0.5)
    assert loss.item() == pytest.approx(math.log(4) + 0.5 * (3 + math.log(4)) ** 2, rel=1e-6)


@pytest.fixture(params=["rows that count", "all rows"])
def _on_any_device(request, monkeypatch):
    """Only on the CPU are ignored rows left out; elsewhere they are computed and count for nothing."""
    if request.param == "all rows":
        monkeypatch.setattr(_linear_cross_entropy, "_rows_that_count", lambda share: None)


@pytest.mark.usefixtures("_on_any_device")
def test_ignored_rows_count_for_nothing_whether_computed_or_not():
    hidden, weight, target, bias = head(3, 5)
    options = {"label_smoothing": 0.1, "z_loss": 1e-2}
    ours = linear_cross_entropy_loss(hidden, weight, target, bias, chunk_tokens=4, **options)
    theirs = plain(hidden, weight, target, bias, None, 0.1, 1e-2, "mean")
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, (hidden, weight, bias)) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("_on_any_device")
def test_a_masked_class_0_does_not_spoil_what_is_ignored():
    hidden, weight, target, _ = head(6)
    target[0] = -100
    bias = torch.zeros(11, dtype=torch.float64)
    bias[0] = -math.inf
    target = target.masked_fill(target == 0, 1)
    loss = linear_cross_entropy_loss(hidden, weight, target, bias, z_loss=1e-4)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (hidden, weight)))


def test_a_sure_prediction_keeps_the_digits_of_its_gradient():
    """p - 1 for p near 1, in float32, against float64."""
    hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[9.0, 0.0], [0.0, 1.0]])
    grads = []
    for dtype in (torch.float32, torch.float64):
        h = hidden.to(dtype).requires_grad_()
        grads.append(torch.autograd.grad(linear_cross_entropy_loss(h, weight.to(dtype), torch.tensor([0])), h)[0])
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-3, atol=0)


MEMORY = """
import resource, sys, torch
import torch.nn.functional as F
from firstlight.losses import linear_cross_entropy_loss
torch.set_num_threads(1)
hidden, weight = torch.randn(4096, 32, requires_grad=True), (0.02 * torch.randn(20000, 32)).requires_grad_()
target = torch.randint(20000, (4096,))
linear_cross_entropy_loss(hidden[:8], weight, target[:8]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_cross_entropy_loss(hidden, weight, target, label_smoothing=0.1, z_loss=1e-4).backward()
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_memory_is_the_chunks():
    """All logits are 312 MiB, of which plain cross-entropy holds three; here it is two buffers of 64."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    (used,) = re.findall(r"MiB (\d+)", done.stdout)
    assert int(used) < 200


@pytest.mark.parametrize("class_weight", [None, [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_minimum_is_that_of_cross_entropy(class_weight, reduction):
    options = {"label_smoothing": 0.1, "reduction": reduction}
    ours = LinearCrossEntropyLoss(class_weight=class_weight, z_loss=1e-3, **options)
    theirs = CrossEntropyLoss(class_weight, **options)
    floor = ours.minimum(LOGITS, torch.eye(3, dtype=torch.float64), TARGET)
    torch.testing.assert_close(floor, theirs.minimum(LOGITS, TARGET))


def test_logits_whose_square_overflows():
    """Without z-loss there is no square: 1e20 squared is no float32, and 0 times infinity no number."""
    hidden = torch.full((1, 1), 1e10, requires_grad=True)
    weight = torch.tensor([[-1e10], [1e10]], requires_grad=True)
    for create_graph in (False, True):
        loss = linear_cross_entropy_loss(hidden, weight, torch.tensor([0]))
        gradient = torch.autograd.grad(loss, [hidden, weight], create_graph=create_graph)
        assert loss.item() == pytest.approx(2e20, rel=1e-6)
        assert gradient[0].item() == pytest.approx(2e10, rel=1e-6)
        torch.testing.assert_close(gradient[1].detach(), torch.tensor([[-1e10], [1e10]]))
