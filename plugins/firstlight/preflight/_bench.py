"""A twin held still inside its own fit: steps can be run on it, and nothing of them stays."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from firstlight.preflight._tape import Record, Tape, replaced
from firstlight.preflight._twin import Plan, Stop, fit, twin_of


@dataclass
class Ran:
    """One step: the losses that were, or would have been, differentiated, and what was seen on the way."""

    losses: list[Tensor] = field(default_factory=list)
    record: Record = field(default_factory=Record)

    @property
    def loss(self) -> Tensor | None:
        """The loss, if there was exactly one."""
        return self.losses[0] if len(self.losses) == 1 else None


class Bench:
    """Runs the step of ``twin`` on batches of our choice, without an optimizer step."""

    def __init__(self, trainer: Trainer, twin: LightningModule, batches: Sequence[Any], plan: Plan) -> None:
        self.trainer, self.twin, self.batches, self.plan = trainer, twin, list(batches), plan
        self.last = Ran()  # the step run last, also one that raised

    @property
    def batch(self) -> Any:
        return self.batches[0]

    def run(
        self,
        batch: Any,
        *,
        training: bool = True,
        backward: bool = False,
        detail: bool = False,
        instead: Mapping[str, Any] | None = None,
    ) -> Ran:
        """Run ``training_step``; with ``backward`` leave gradients in the parameters.

        ``instead`` is ``{"path": ..., "nth": ..., "output": ...}``: a module call to replace.
        """
        ran = self.last = Ran()
        plain = {layer: _plain_values(layer) for layer in self.twin.modules()}
        buffers = [(value, value.clone()) for value in self.twin.buffers()]
        tape = Tape(self.twin, detail=detail)
        ran.record = tape.record
        if not training:
            self.twin.eval()
        try:
            with contextlib.ExitStack() as stack:
                if instead is not None:
                    stack.enter_context(replaced(self.twin, **instead))
                stack.enter_context(self._no_steps(ran, backward))
                stack.enter_context(torch.enable_grad())
                stack.enter_context(self.trainer.precision_plugin.train_step_context())
                stack.enter_context(tape.running())
                output = self._step(batch)
            if self.twin.automatic_optimization:
                loss = loss_in(output)
                if loss is not None:
                    ran.losses = [loss]
                    if backward and loss.requires_grad:
                        back_of(loss)
        finally:
            for layer, values in plain.items():
                vars(layer).update(values)
            with torch.no_grad():
                for value, kept in buffers:
                    if not torch.equal(value, kept):  # batch norm moves its statistics without a new version
                        value.copy_(kept)
        return ran

    def loss_of(self, batch: Any, ran: Ran, output: Tensor) -> Tensor | None:
        """Return the loss of ``batch`` as if the head of ``ran`` had given ``output``."""
        head = ran.record.head
        assert head is not None
        same = [call for call in ran.record.networks if call.path == head.path]
        nth = next(index for index, call in enumerate(same) if call is head)
        return self.run(batch, instead={"path": head.path, "nth": nth, "output": output}).loss

    def _step(self, batch: Any) -> Any:
        return step_of(self.twin, batch)

    @contextlib.contextmanager
    def _no_steps(self, ran: Ran, backward: bool) -> Iterator[None]:
        """Under manual optimization: keep the losses, differentiate if asked, and let no optimizer step."""
        if self.twin.automatic_optimization:
            yield
            return
        optimizers: list[Optimizer] = self.trainer.optimizers
        manual_backward = self.twin.manual_backward

        def keep(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            ran.losses.append(loss)
            if backward:
                manual_backward(loss, *args, **kwargs)

        def stand(closure: Callable[[], Any] | None = None) -> Any:
            return closure() if closure is not None else None

        shadows: Any = self.twin
        shadows.manual_backward = keep
        for optimizer in optimizers:
            optimizer.step = stand  # type: ignore[method-assign]
        try:
            yield
        finally:
            del shadows.manual_backward
            for optimizer in optimizers:
                optimizer.__dict__.pop("step", None)


def _plain_values(layer: Any) -> dict[str, Any]:
    """Return modes and counters: a step that counts itself must not count the steps of a bench."""
    return {name: value for name, value in vars(layer).items() if isinstance(value, (bool, int, float, str))}


def step_of(module: LightningModule, batch: Any) -> Any:
    """Call ``training_step``, with or without the index that it may take."""
    step = module.training_step
    takes_index = len(inspect.signature(step).parameters) > 1
    return step(batch, 0) if takes_index else step(batch)


def back_of(loss: Tensor) -> None:
    """Differentiate a loss of the step; what it raises is the step's own."""
    loss.backward()  # type: ignore[no-untyped-call]


def loss_in(output: Any) -> Tensor | None:
    """Return the loss of what a step has returned, if there is one."""
    loss = output["loss"] if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None


def on_bench(module: LightningModule, plan: Plan, batches: Sequence[Any], experiment: Callable[[Bench], None]) -> None:
    """Call ``experiment`` with a bench that holds a copy of ``module`` at the start of its first step."""

    class Hold(Callback):
        def on_train_batch_start(self, trainer: Trainer, twin: LightningModule, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                ready = [batch]
                for other in batches[1:]:
                    moved = twin._apply_batch_transfer_handler(copy.deepcopy(other), device=plan.device)
                    ready.append(trainer.precision_plugin.convert_input(moved))
                experiment(Bench(trainer, twin, ready, plan))
                trainer.should_stop = True
                raise Done

    with contextlib.suppress(Done):
        fit(twin_of(module), plan, batches, [Hold(), Stop(1)])


class Done(BaseException):
    """The experiment is over; the fit around it has nothing more to do."""
