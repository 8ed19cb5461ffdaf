"""LAMB is Algorithm 2 of the paper, in every mode, and comes back from a checkpoint bit for bit."""

from __future__ import annotations

import copy
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from firstlight.optimizers import LAMB, Adam

MODES = [{}, {"foreach": True}, {"foreach": False}, {"capturable": True}]


def algorithm_2(params, gradients, *, lr, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01, phi=lambda z: z):
    """arXiv:1904.00962v5, Algorithm 2, line by line, one number at a time."""
    params = [p.detach().flatten().tolist() for p in params]
    m = [[0.0] * len(p) for p in params]
    v = [[0.0] * len(p) for p in params]
    for t, grads in enumerate(gradients, start=1):
        for i, x in enumerate(params):
            g = grads[i].flatten().tolist()
            m[i] = [b1 * a + (1 - b1) * b for a, b in zip(m[i], g, strict=True)]
            v[i] = [b2 * a + (1 - b2) * b * b for a, b in zip(v[i], g, strict=True)]
            m_hat = [a / (1 - b1**t) for a in m[i]]
            v_hat = [a / (1 - b2**t) for a in v[i]]
            r = [a / (math.sqrt(b) + eps) for a, b in zip(m_hat, v_hat, strict=True)]
            u = [a + weight_decay * b for a, b in zip(r, x, strict=True)]
            length, size = math.hypot(*x), math.hypot(*u)
            ratio = phi(length) / size if length > 0 and size > 0 else 1.0
            params[i] = [a - lr * ratio * b for a, b in zip(x, u, strict=True)]
    return [torch.tensor(p, dtype=torch.float64) for p in params]


def problem(steps=5, dtype=torch.float64, shapes=((3, 4), (3,), (2, 2, 2), (1,), (40, 500))):
    generator = torch.Generator().manual_seed(1)
    params = [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]
    params[3].data.zero_()  # a norm of zero: ratio 1
    gradients = [
        [torch.randn(s, generator=generator, dtype=torch.float64) * 10.0 ** (2 * i - 4) for i, s in enumerate(shapes)]
        for _ in range(steps)
    ]
    return params, [[g.to(dtype) for g in grads] for grads in gradients]


def run(optimizer, params, gradients):
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return [p.detach().flatten() for p in params]


def relative_error(found, expected):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 1e-9, 1e-4, 0.1])
def test_it_is_the_paper_to_1e_12(mode, weight_decay):
    params, gradients = problem()
    expected = algorithm_2(params, gradients, lr=0.01, weight_decay=weight_decay)
    found = run(LAMB(params, lr=0.01, weight_decay=weight_decay, **mode), params, gradients)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_phi_clips_the_norm_of_the_weights(mode):
    params, gradients = problem()
    expected = algorithm_2(params, gradients, lr=0.01, phi=lambda z: min(max(z, 0.5), 2.0))
    assert relative_error(run(LAMB(params, lr=0.01, phi=(0.5, 2.0), **mode), params, gradients), expected) < 1e-12


# optax 0.2.8 with jax_enable_x64: optax.lamb(0.01, weight_decay=...), 5 steps from the start of `golden_problem`.
OPTAX = {
    0.0: """
        -1.0286439394735587 -0.8266258724464184 -0.6021254010054103 -0.4523582882937063 -0.3040955685352605
        -0.08645379721725079 0.11827005372295082 0.2613524736200988 0.4318731861754797 0.654013494039476
        0.8356763680335089 0.9785982209582944
        0.47103993500648417 -0.25164705418336836 2.048085095416822
    """,
    0.1: """
        -1.0226648246483776 -0.8224205276175315 -0.5987438955342144 -0.4493172823447905 -0.3024795839217579
        -0.08647561548117458 0.11779822295996858 0.26036440825126195 0.4291599035400338 0.649916733506054
        0.8313243269486589 0.9733960653734318
        0.4512130099153366 -0.24656851161558582 2.008814560739283
    """,
}


def golden_problem():
    start = [torch.linspace(-1, 1, 12, dtype=torch.float64), torch.tensor([0.5, -0.25, 2.0], dtype=torch.float64)]
    twelve, three = torch.arange(12, dtype=torch.float64), torch.arange(3, dtype=torch.float64)
    return [nn.Parameter(p) for p in start], [[(twelve * 1.7 + t).sin(), (three * 0.9 + 2 * t).cos()] for t in range(5)]


@pytest.mark.parametrize("weight_decay", OPTAX)
def test_it_is_optax(weight_decay):
    params, gradients = golden_problem()
    found = run(LAMB(params, lr=0.01, weight_decay=weight_decay), params, gradients)
    expected = torch.tensor([float(word) for word in OPTAX[weight_decay].split()], dtype=torch.float64).split([12, 3])
    assert relative_error(found, expected) < 1e-12


def test_it_is_keras_where_keras_is_the_paper():
    """Goldens of keras/src/optimizers/lamb_test.py without decay, which keras puts outside of the ratio."""
    param = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    (found,) = run(LAMB([param], lr=0.5, weight_decay=0.0), [param], [[torch.tensor([1.0, 6.0, 7.0, 2.0])]])
    torch.testing.assert_close(found, torch.tensor([-0.3693, 0.6307, 1.6307, 2.6307]), atol=5e-5, rtol=0)

    param = nn.Parameter(torch.ones(10))
    optimizer = LAMB([param], lr=1e-3, eps=1e-7, weight_decay=0.0)
    first, later = torch.full((10,), 0.01), torch.arange(1, 11) / 10
    for step, golden in enumerate([0.999, 0.9982, 0.9974, 0.9965, 0.9955]):
        (found,) = run(optimizer, [param], [[later if step else first]])
        torch.testing.assert_close(found, torch.full((10,), golden), rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.001])
def test_each_step_is_lr_times_the_length_of_the_weights(mode, size, weight_decay):
    """Where pytorch-optimizer's first step is ten times as long, and timm's without decay has no such length."""
    params, gradients = problem()
    optimizer = LAMB(params, lr=0.01, weight_decay=weight_decay, **mode)
    for grads in gradients:
        before = [p.detach().clone() for p in params]
        run(optimizer, params, [[g * size for g in grads]])
        for i, (old, new) in enumerate(zip(before, params, strict=True)):
            if old.norm() > 0:
                assert float((new.detach() - old).norm() / old.norm()) == pytest.approx(0.01, rel=1e-12), i


def test_norms_of_long_tensors_are_exact():
    """float32 sums of 10M squares, one after the other, are off by 1e-4."""
    before = torch.rand(10_000_000) + 0.5
    param = nn.Parameter(before.clone())
    (after,) = run(LAMB([param], lr=0.1, weight_decay=0.0), [param], [[torch.ones(10_000_000)]])
    moved = torch.linalg.vector_norm(after - before, dtype=torch.float64) / before.double().norm()
    assert float(moved) == pytest.approx(0.1, rel=2e-6)


def test_all_modes_are_one_computation():
    def result(**mode):
        params, gradients = problem(dtype=torch.float32)
        return run(LAMB(params, lr=0.01, **mode), params, gradients)

    for mode in MODES[1:3]:
        assert all(map(torch.equal, result(), result(**mode)))
    for a, b in zip(result(), result(capturable=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class OnDevice(nn.Parameter):
    """A type that LAMB does not know: it must not read numbers from it."""


class Reads(TorchDispatchMode):
    """Counts how often the number in a tensor is read: on a device, the host would wait for it."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("foreach", [None, False])
def test_what_lies_on_a_device_is_not_read(adapt, foreach):
    """With capturable, or on parameters of a foreign type (a device is not needed to see it), to the same end."""
    params, gradients = problem()
    expected = run(LAMB(params, lr=0.01, adapt=adapt), params, gradients)
    params, gradients = problem()
    optimizer = LAMB(params, lr=torch.tensor(0.01, dtype=torch.float64), adapt=adapt, capturable=True)
    with Reads() as reads:
        found = run(optimizer, params, gradients)
    assert reads.number == 0
    assert relative_error(found, expected) < 1e-12
    params, gradients = problem()
    params = [OnDevice(p.detach()) for p in params]
    with Reads() as reads:
        found = run(LAMB(params, lr=0.01, adapt=adapt, foreach=foreach), params, gradients)
    assert reads.number == len(params) * len(gradients), "the numbers of steps, which lie on the CPU"
    assert relative_error(found, expected) < 1e-12


def test_without_adaptation_or_decay_it_is_adam():
    params, gradients = problem()
    ours = run(LAMB(params, lr=0.01, weight_decay=0.0, adapt=False), params, gradients)
    params, gradients = problem()
    theirs = run(Adam(params, lr=0.01, eps=1e-6), params, gradients)
    assert relative_error(ours, theirs) < 1e-12


def test_maximize_is_the_negative_gradient():
    params, gradients = problem()
    up = run(LAMB(params, lr=0.01, maximize=True), params, gradients)
    params, gradients = problem()
    down = run(LAMB(params, lr=0.01), params, [[-g for g in grads] for grads in gradients])
    assert all(map(torch.equal, up, down))


def test_gradients_are_left_alone():
    for dtype in (torch.float32, torch.bfloat16):
        params, gradients = problem(steps=1, dtype=dtype)
        run(LAMB(params, lr=0.01, maximize=True), params, gradients)
        assert all(torch.equal(p.grad, g) for p, g in zip(params, gradients[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_split_run_is_the_whole_run(dtype, mode):
    """Bit for bit, by way of a file read under weights_only, the moments of half-precision weights included."""
    params, gradients = problem(steps=7, dtype=dtype)
    whole = run(LAMB(params, lr=0.01, **mode), params, gradients)

    params, gradients = problem(steps=7, dtype=dtype)
    first = LAMB(params, lr=0.01, **mode)
    run(first, params, gradients[:3])
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    params = [nn.Parameter(p) for p in saved["params"]]
    second = LAMB(params, lr=0.5, **mode)
    second.load_state_dict(saved["optimizer"])
    again = second.state_dict()
    for number, state in saved["optimizer"]["state"].items():
        for key, value in state.items():
            assert value.dtype == again["state"][number][key].dtype
            assert torch.equal(value, again["state"][number][key])
    assert all(map(torch.equal, whole, run(second, params, gradients[3:])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_take_the_steps_of_single_precision(dtype):
    """Squares of gradients of 1e-5 vanish in float16, and the norm of 300 weights of 1e4 is infinite."""
    start = torch.full((300,), 1e4)
    gradient = torch.linspace(-1, 1, 300) * 1e-5
    params = [nn.Parameter(start.to(dtype))]
    (found,) = run(LAMB(params, lr=0.1, eps=1e-12), params, [[gradient.to(dtype)]] * 3)
    single = [nn.Parameter(start.to(dtype).float())]
    (expected,) = run(LAMB(single, lr=0.1, eps=1e-12), single, [[gradient.to(dtype).float()]] * 3)
    torch.testing.assert_close(found.float(), expected, rtol=3 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("weight_decay", [1e-30, 1e-6, 1e-3, 1e3])
def test_no_decay_is_too_small_or_too_large(weight_decay):
    params, gradients = problem(dtype=torch.float32)
    expected = algorithm_2(params, gradients, lr=0.01, weight_decay=weight_decay)
    found = run(LAMB(params, lr=0.01, weight_decay=weight_decay), params, gradients)
    assert relative_error([p.double() for p in found], expected) < 1e-5


def test_parameters_of_several_types_in_one_group():
    params, gradients = problem()
    params[2] = nn.Parameter(params[2].detach().float())
    for grads in gradients:
        grads[2] = grads[2].float()
    expected = algorithm_2(params, gradients, lr=0.01)
    found = run(LAMB(params, lr=0.01), params, gradients)
    assert relative_error(found[:2] + found[3:], expected[:2] + expected[3:]) < 1e-12
    assert relative_error([found[2].double()], expected[2:3]) < 1e-6


def test_a_norm_of_zero_takes_the_plain_step():
    param = nn.Parameter(torch.zeros(3))
    (found,) = run(LAMB([param], lr=0.1), [param], [[torch.tensor([1.0, -2.0, 0.0])]])
    torch.testing.assert_close(found, torch.tensor([-0.1, 0.1, 0.0]), rtol=1e-5, atol=0)
    param = nn.Parameter(torch.ones(3))
    (found,) = run(LAMB([param], lr=0.1, weight_decay=0.0), [param], [[torch.zeros(3)]] * 3)
    assert torch.equal(found, torch.ones(3))


def test_a_parameter_that_joins_late_starts_its_own_count():
    params, gradients = problem()
    late, others = params[1], [params[0], *params[2:]]
    optimizer = LAMB(params, lr=0.01)
    start = copy.deepcopy(params)
    for step, grads in enumerate(gradients):
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if param is late and step < 2 else grad
        optimizer.step()
    expected = algorithm_2(start, gradients, lr=0.01)
    expected[1:2] = algorithm_2(start[1:2], [grads[1:2] for grads in gradients[2:]], lr=0.01)
    assert relative_error([p.detach().flatten() for p in params], expected) < 1e-12
    assert [float(optimizer.state[p]["step"]) for p in (late, others[0])] == [3.0, 5.0]


@pytest.mark.parametrize("lr", [torch.tensor(0.01), torch.tensor([0.01])], ids=["0-d", "1-d"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_tensor_as_rate(lr, mode):
    params, gradients = problem()
    expected = algorithm_2(params, gradients, lr=float(lr))
    found = run(LAMB(params, lr=lr, **mode), params, gradients)
    assert relative_error(found, expected) < 1e-7  # the rate itself is a float32


def test_options_by_group():
    params, gradients = problem()
    groups = [
        {"params": params[:2], "weight_decay": 0.3, "lr": 0.02},
        {"params": params[2:], "adapt": False, "weight_decay": 0.0},
    ]
    expected = algorithm_2(params[:2], [grads[:2] for grads in gradients], lr=0.02, weight_decay=0.3)
    adam = copy.deepcopy(params[2:])
    found = run(LAMB(groups, lr=0.01), params, gradients)
    assert relative_error(found[:2], expected) < 1e-12
    theirs = run(Adam(adam, lr=0.01, eps=1e-6), adam, [grads[2:] for grads in gradients])
    assert relative_error(found[2:], theirs) < 1e-12


def test_odd_layouts_and_sizes():
    """Transposed weights, gradients laid out otherwise, scalars and empty tensors."""
    params = [nn.Parameter(torch.randn(3, 4, dtype=torch.float64).T), nn.Parameter(torch.tensor(2.0).double())]
    gradients = [[torch.randn(4, 3).double(), torch.tensor(0.5).double()] for _ in range(3)]
    expected = algorithm_2(params, gradients, lr=0.01)
    empty = nn.Parameter(torch.empty(0).double())
    optimizer = LAMB([*params, empty], lr=0.01)
    found = run(optimizer, [*params, empty], [[*grads, torch.empty(0).double()] for grads in gradients])
    assert relative_error(found[:2], expected) < 1e-12
    assert found[2].numel() == 0


def test_closure_and_missing_gradients():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LAMB([used, unused], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss.detach()

    assert float(optimizer.step(closure)) == 2.0
    assert not torch.equal(used, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))
    assert unused not in optimizer.state


def test_torch_schedulers_and_copies_work():
    params, gradients = problem()
    optimizer = LAMB(params, lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    run(optimizer, params, gradients[:1])
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.005
    twin = copy.deepcopy(optimizer)
    run(optimizer, params, gradients[1:])
    copies = twin.param_groups[0]["params"]
    run(twin, copies, gradients[1:])
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


def test_sparse_gradients_and_complex_parameters_are_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not take sparse gradients; use Embedding"):
        LAMB(embedding.parameters()).step()
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"view_as_real"):
        LAMB([param]).step()


@pytest.mark.slow
def test_shards_share_the_norm_of_their_layer(tmp_path):
    """Under FSDP2 the norms of the paper are those of whole layers."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1] / "plugins")}
    for meeting in ("meeting", "again"):  # gloo aborts a process now and then while its threads are torn down
        command = [sys.executable, str(here / "two_shards.py"), str(tmp_path / meeting)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
        if "SIGABRT" not in shown.stderr:
            break
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert float(shown.stdout) < 1e-14
