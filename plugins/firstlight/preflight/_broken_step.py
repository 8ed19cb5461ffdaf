"""What a step says that cannot be run: whose fault it is, and where."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule

from firstlight import losses
from firstlight._require import said_by
from firstlight.preflight._bench import Bench, loss_in, step_of

LIGHTNING = str(Path(lightning.__file__).parent)
_TORCH, _LOSSES = (f"{Path(str(package.__file__)).parent}{os.sep}" for package in (torch, losses))
_OURS = f"{Path(_LOSSES).parent}{os.sep}"
# Of the machine on which the copy runs, and not of the step.
_CIRCUMSTANCES = ("out of memory", "not implemented for")


def broken_step(bench: Bench) -> dict[str, Any]:
    """Run the first step once more, with nothing of ours around it; return what it raises, if that is sure to be real.

    An error counts where a module, a function of torch or a loss raised it. What the step itself asks for and a copy
    lacks (a logger, a trainer's data) does not.
    """
    twin = bench.twin
    try:
        with torch.enable_grad(), bench.trainer.precision_plugin.train_step_context():
            output = step_of(twin, bench.batch)
        loss = loss_in(output) if twin.automatic_optimization else None
        if loss is not None and loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        modules = _modules(error.__traceback__)
        inside = len(modules) > 0 or files[-1].startswith((_TORCH, _LOSSES))
        told = said_by(error)
        if not inside or files[-1].startswith(LIGHTNING) or isinstance(error, NotImplementedError):
            return {}
        if any(word in told.lower() for word in _CIRCUMSTANCES):
            return {}
        return {"model/step_error": told, "model/step_error_at": _place(error, modules, twin)}
    finally:
        twin.zero_grad()
    return {}


def _modules(trace: TracebackType | None) -> list[Any]:
    """Return the modules whose calls the error came through, from the outside to the inside."""
    found = []
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "_call_impl" and frame.f_code.co_filename.startswith(_TORCH):
            found.append(frame.f_locals.get("self"))
        trace = trace.tb_next
    return found


def _place(error: Exception, modules: list[Any], twin: LightningModule) -> str:
    names = {id(module): name for name, module in twin.named_modules()}
    path = next((names[id(module)] for module in reversed(modules) if names.get(id(module))), "the step")
    packages = (_TORCH, LIGHTNING, _OURS)
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(packages)]
    return f"{path}, {Path(own[-1].filename).name}:{own[-1].lineno}" if own else path
