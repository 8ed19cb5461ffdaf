"""Speed and memory of the building blocks, side by side with torch, timm, pytorch-optimizer and PML.

``make bench-blocks`` installs the peers beside us and prints one table. Times are medians over pairs of runs, one of
ours and one of theirs in turn, in this process; so is the ratio. With one thread (the default) they are CPU time, which
other work on the machine disturbs least; with more, wall time. Memory is the peak of the resident set of a process of
its own, less what it held before (inputs and libraries).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _table import Call, Result, Skip, part, report, timed
from torch import Tensor, nn

# ------------------------------------------------------------------------------------------------------- optimizers


def timm_lamb() -> Any:
    """timm.optim.Lamb without ``import timm``, which wants torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise Skip("timm is not installed")
    root = Path(spec.origin).parent
    for name, path in (("timm", root), ("timm.optim", root / "optim")):
        package = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = [str(path)]
    return importlib.import_module("timm.optim.lamb").Lamb


def kozistr_lamb() -> Any:
    try:
        return importlib.import_module("pytorch_optimizer").Lamb
    except ImportError as error:
        raise Skip("pytorch-optimizer is not installed") from error


def steps(make: Callable[[list[nn.Parameter]], Any], tensors: int, values: int) -> Call:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(values // tensors, generator=generator)) for _ in range(tensors)]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    step: Call = make(params).step
    return step


REGIMES = {"200 tensors, 10M values": (200, 10_000_000, 15), "1000 tensors, 0.5M values": (1000, 500_000, 40)}


DECAY = {"weight_decay": 0.01}  # the same for all: without it a step has less to do


def lamb_against_adamw() -> Iterator[Result]:
    lamb, adamw = part("optimizers", "LAMB"), torch.optim.AdamW
    for regime, (tensors, values, number) in REGIMES.items():
        for foreach, mode in ((False, "tensor by tensor"), (True, "foreach")):
            options = {"foreach": foreach, **DECAY}
            yield timed(
                f"LAMB, {regime}, {mode}",
                f"AdamW, {mode}",
                steps(partial(lamb, **options), tensors, values),
                steps(partial(adamw, **options), tensors, values),
                number=number,
                most=1.15,
            )


def lamb_against_peers() -> Iterator[Result]:
    lamb = part("optimizers", "LAMB")
    for peer, find in (("timm", timm_lamb), ("pytorch-optimizer", kozistr_lamb)):
        theirs = find()
        settings: list[dict[str, Any]] = [{"foreach": True}, {"foreach": False}]
        if peer == "timm":
            settings = [mode | clip for mode in settings for clip in ({}, {"max_grad_norm": None})]
        for regime, (tensors, values, number) in REGIMES.items():
            results = [
                timed(
                    f"LAMB, {regime}",
                    f"{peer}'s fastest: {', '.join(f'{key}={value}' for key, value in setting.items())}",
                    steps(partial(lamb, **DECAY), tensors, values),
                    steps(partial(theirs, **DECAY, **setting), tensors, values),
                    number=max(5, number // 2),
                    most=1.0,
                )
                for setting in settings
            ]
            yield max(results, key=lambda result: result.ratio or 0.0)


# ----------------------------------------------------------------------------------------------------------- losses


def backward(loss: Callable[..., Tensor], *leaves: Tensor) -> Call:
    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(*leaves).backward()

    return call


def token_problem(tokens: int = 4096, hidden: int = 512, vocabulary: int = 50_000) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, generator=generator) * hidden**-0.5).requires_grad_()
    target = torch.randint(vocabulary, (tokens,), generator=generator)
    target[torch.rand(tokens, generator=generator) < 0.09] = -100
    return states, weight, target


def linear_cross_entropy(which: str, **sizes: int) -> Call:
    states, weight, target = token_problem(**sizes)
    if which == "ours":
        loss = part("losses", "linear_cross_entropy_loss")
        return backward(lambda h, w: loss(h, w, target), states, weight)
    if which == "torch":
        if not hasattr(F, "linear_cross_entropy"):
            raise Skip("this torch has no linear_cross_entropy")
        return backward(lambda h, w: F.linear_cross_entropy(h, w, target), states, weight)
    return backward(lambda h, w: F.cross_entropy(h @ w.T, target), states, weight)


def tokens_time() -> Iterator[Result]:
    what = "linear_cross_entropy_loss, V=50k, H=512"
    ours, full = linear_cross_entropy("ours"), linear_cross_entropy("full")
    yield timed(f"{what}, 4096 tokens", "cross_entropy(h @ W.T)", ours, full, number=3, most=0.85)
    small = {"tokens": 1024}
    ours, theirs = linear_cross_entropy("ours", **small), linear_cross_entropy("torch", **small)
    yield timed(f"{what}, 1024 tokens", "torch linear_cross_entropy", ours, theirs, number=3, most=None)


def tokens_memory() -> Iterator[Result]:
    part("losses", "linear_cross_entropy_loss")
    mine, full = memory("tokens-ours"), memory("tokens-full")
    ratio = mine / full
    what = "linear_cross_entropy_loss, extra memory"
    yield Result(what, "cross_entropy(h @ W.T)", _mib(mine), _mib(full), ratio, "≤ 0.12", ratio <= 0.12)


def views(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(number // 2, 128, generator=generator)
    return first.requires_grad_(), (first + torch.randn(first.shape, generator=generator)).detach().requires_grad_()


def masked_cross_entropy(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent as one would write it down."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    target = torch.arange(len(z)).roll(len(first))
    return F.cross_entropy(logits, target)


def nt_xent() -> Iterator[Result]:
    loss = part("losses", "nt_xent_loss")
    leaves = views(512)
    ours = backward(lambda a, b: loss(a, b, temperature=0.5), *leaves)
    plain = backward(masked_cross_entropy, *views(512))
    yield timed("nt_xent_loss, 512 views", "masked cross-entropy", ours, plain, number=60, most=1.1)
    mine = memory("nt-xent")
    yield Result("nt_xent_loss, 8192 views, memory", "", _mib(mine), "", None, "≤ 700 MiB", mine <= 700)
    try:
        pml = importlib.import_module("pytorch_metric_learning.losses").NTXentLoss(temperature=0.5)
    except ImportError as error:
        raise Skip("pytorch-metric-learning is not installed") from error
    labels = torch.arange(256).repeat(2)
    theirs = backward(lambda a, b: pml(torch.cat([a, b]), labels), *views(512))
    yield timed("nt_xent_loss, 512 views", "pytorch-metric-learning", ours, theirs, number=3, most=0.01)


def torchvision_focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The formula of torchvision.ops.sigmoid_focal_loss."""
    p = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    loss = ce * ((1 - p_t) ** gamma)
    return ((alpha * target + (1 - alpha) * (1 - target)) * loss).mean()


def focal() -> Iterator[Result]:
    loss = part("losses", "binary_focal_loss")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1_000_000, generator=generator).requires_grad_()
    target = (torch.rand(1_000_000, generator=generator) < 0.1).float()
    yield timed(
        "binary_focal_loss, 1M logits",
        "torchvision's formula",
        backward(lambda z: loss(z, target, gamma=2.0, alpha=0.25), logits),
        backward(lambda z: torchvision_focal(z, target), logits.detach().clone().requires_grad_()),
        number=25,
        most=0.9,
    )


# ----------------------------------------------------------------------------------------------------- initializers


def lsuv_calls() -> Iterator[Result]:
    lsuv_ = part("initializers", "lsuv_")
    calls: list[nn.Module] = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(self)
            return super().forward(x)

    class Network(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(self)
            result: Tensor = super().forward(x)
            return result

    torch.manual_seed(0)
    model = Network(*(layer for _ in range(30) for layer in (Counted(64, 64), nn.Tanh())))
    calls.clear()
    lsuv_(model, torch.randn(256, 64))
    forwards = sum(module is model for module in calls)
    most = max(sum(module is layer for module in calls) for layer in model if isinstance(layer, Counted)) - forwards
    met = forwards <= 1 and most <= 10
    yield Result(
        "lsuv_, 30 layers", "", f"{forwards} forward + {most} calls a layer", "", None, "≤ 1 forward + 10 calls", met
    )


# ----------------------------------------------------------------------------------------------------------- memory

MEASURED: dict[str, Callable[[], Call]] = {
    "tokens-ours": lambda: linear_cross_entropy("ours"),
    "tokens-full": lambda: linear_cross_entropy("full"),
    "nt-xent": lambda: backward(part("losses", "nt_xent_loss"), *views(8192)),
}
# The same calls, small: what libraries set aside at their first use is not the call's.
REHEARSED: dict[str, Callable[[], Call]] = {
    "tokens-ours": lambda: linear_cross_entropy("ours", tokens=64, vocabulary=100),
    "tokens-full": lambda: linear_cross_entropy("full", tokens=64, vocabulary=100),
    "nt-xent": lambda: backward(part("losses", "nt_xent_loss"), *views(64)),
}


def memory(name: str) -> float:
    """Return the extra MiB of a call, measured in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        raise Skip("memory is measured on Linux only")
    command = [sys.executable, __file__, "--memory", name, "--threads", str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str) -> float:
    REHEARSED[name]()()
    call = MEASURED[name]()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _mib(value: float) -> str:
    return f"{value:.0f} MiB"


# ------------------------------------------------------------------------------------------------------------ table

ROWS = (lamb_against_adamw, lamb_against_peers, tokens_time, tokens_memory, nt_xent, focal, lsuv_calls)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="run the rows whose function has this in its name")
    parser.add_argument("--memory", choices=MEASURED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(measure_memory(options.memory))
        return 0
    report({rows.__name__: rows for rows in ROWS}, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
