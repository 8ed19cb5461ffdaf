"""``export``: the model of a checkpoint as files that need none of the project's code, compared with the model."""

from __future__ import annotations

import inspect
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.export import Dim, ExportedProgram

from firstlight import __version__
from firstlight._batch import tensors_of
from firstlight._evaluating import evaluating
from firstlight.cli._checkpoints import Checkpoint
from firstlight.cli._errors import UsageError
from firstlight.cli._export_formats import ExportFormat, formats_for, tracing, write_onnx, write_pt2
from firstlight.cli._leaves import leaves
from firstlight.cli._parity import parity
from firstlight.cli._say import say, short
from firstlight.modules import Exportable

# One batch on the CPU in full precision, whatever the run was trained with.
EXPORT_TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
    "plugins": None,
    "callbacks": None,
    "logger": False,
    "fast_dev_run": False,
    "limit_predict_batches": 1,
    "limit_val_batches": 1,
    "inference_mode": False,  # its tensors cannot be traced
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class ExportError(UsageError):
    """The model cannot be exported, or what was exported is another."""

    code = 1


class FirstBatch(Callback):
    """Keeps the first batch of a loop, as the module got it."""

    def __init__(self) -> None:
        self.batch: Any = None

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.batch = batch if self.batch is None else self.batch

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.batch = batch if self.batch is None else self.batch


@dataclass(frozen=True)
class Traced:
    """A model as a graph. ``symbols`` names each dimension that may have any size: by input, by dimension."""

    program: ExportedProgram
    symbols: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Trial:
    """Inputs and what the model makes of them. ``symbol`` is the size that is another than in the batch, if one is."""

    symbol: str
    inputs: tuple[Tensor, ...]
    outputs: list[Tensor]


def export(
    trainer: Trainer,
    module: LightningModule,
    data: LightningDataModule | None,
    checkpoint: Checkpoint,
    folder: Path,
    *,
    form: ExportFormat | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Write the model of a checkpoint to ``folder``, whole or not at all.

    Raises:
        UsageError: If packages for the format are missing.
        ExportError: If the module does not say what to export, torch cannot trace it, or the exported model gives
            other outputs on a real batch.
    """
    forms = formats_for(form)
    batch = _real_batch(trainer, module, data, checkpoint)
    found = _checked(_exportable(module, batch), module)
    with torch.no_grad(), evaluating(found.model), _replacing(folder) as part:
        outputs = leaves(found.model(*found.inputs))
        if not outputs or not all(isinstance(output, Tensor) for output in outputs.values()):
            raise ExportError(f"outputs of the exported model must be tensors; there are {_kinds(outputs.values())}")
        with tracing():
            traced, fixed = _traced(found)
        if fixed:
            say(f"export: sizes are fixed, as in the batch it was traced on: {fixed}")
        trials = [Trial(s, x, tensors_of(found.model(*x))) for s, x in _sizes(found.inputs, traced)]
        files = {}
        for name in forms:
            path = part / f"model.{name}"
            with tracing():
                run = _written(name, traced, path, list(outputs))
                results = [parity(trial.outputs, run(trial.inputs), tolerance=tolerance) for trial in trials]
            worst = max(result.max_abs_difference for result in results)
            shapes = " and ".join(str(tuple(trial.inputs[0].shape)) for trial in trials)
            line = f"{path.name} differs from the model by at most {worst:.3g}, on inputs of shape {shapes}"
            if not all(result.passed for result in results):
                raise ExportError(f"{line}: above the tolerance {tolerance:g}; nothing was kept")
            say(f"export: {line}")
            files[path.name] = {"max_abs_difference": worst}
        facts = {
            "checkpoint": checkpoint.path.name,
            "step": checkpoint.step,
            "module": type(module).__qualname__,
            "inputs": _described(traced.symbols, found.inputs, list(traced.symbols.values())),
            "outputs": _described(outputs, trials[0].outputs, _output_symbols(trials)),
            "tolerance": tolerance,
            "files": files,
            "versions": {"firstlight": __version__, "torch": torch.__version__},
        }
        (part / "export.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if form is None and "onnx" not in forms:
        say("export: no model.onnx; pip install 'firstlight[export]' for it")
    say(f"exported: {short(folder)}")


def _real_batch(
    trainer: Trainer, module: LightningModule, data: LightningDataModule | None, checkpoint: Checkpoint
) -> Any:
    """Return a batch as prediction gets it, else validation, and the module with the checkpoint's weights."""
    (kept,) = (callback for callback in trainer.callbacks if isinstance(callback, FirstBatch))  # type: ignore[attr-defined]
    owner = data if data is not None else module
    loading = {"datamodule": data, "ckpt_path": str(checkpoint.path), "weights_only": True}
    with torch.compiler.set_stance("force_eager"):
        if is_overridden("predict_dataloader", owner) and is_overridden("predict_step", module):
            trainer.predict(module, return_predictions=False, **loading)  # type: ignore[arg-type]
        elif is_overridden("val_dataloader", owner):
            trainer.validate(module, verbose=False, **loading)  # type: ignore[arg-type]
    if kept.batch is None:
        raise ExportError("export needs a batch: there is neither a predict_dataloader nor a val_dataloader")
    return kept.batch


def _exportable(module: LightningModule, batch: Any) -> Exportable:
    hook = getattr(module, "export_model", None)
    if hook is not None:
        try:
            found: Exportable = hook(batch)
        except NotImplementedError as error:
            raise ExportError(str(error)) from None
        return found
    if type(module).forward is LightningModule.forward:
        name = type(module).__qualname__
        raise ExportError(f"{name} does not say what to export: write forward(x) or export_model(batch)")
    named = batch.get("input") if isinstance(batch, Mapping) else None
    return Exportable(module, tuple(tensors_of(batch)[:1]) if named is None else (named,))


def _checked(found: Exportable, module: LightningModule) -> Exportable:
    if not found.inputs or not all(isinstance(x, Tensor) for x in found.inputs):
        name = type(module).__qualname__
        problem = f"inputs of the exported model must be tensors; those of {name} are {_kinds(found.inputs)}"
        raise ExportError(problem, "write export_model(batch), which returns a model of tensors and its inputs")
    inputs = [x.detach().cpu().clone() for x in found.inputs]
    if 0 in found.dynamic_dims and any(x.ndim and len(x) == 1 for x in inputs):
        inputs = [torch.cat([x, x]) for x in inputs]  # torch takes a size of 1 to be fixed
    return replace(found, inputs=tuple(inputs))


def _traced(found: Exportable) -> tuple[Traced, str]:
    """Return the graph, and why its sizes are fixed, if they are."""
    names = _input_names(found)
    batch = Dim("batch")
    symbols = {
        name: {d: "batch" if d == 0 else f"{name}_{d}" for d in found.dynamic_dims if d < x.ndim}
        for name, x in zip(names, found.inputs, strict=True)
    }
    # Of any size the batch; of those that the model takes the others, such as positions up to its context.
    shapes = tuple({d: batch if d == 0 else Dim.DYNAMIC for d in of_input} for of_input in symbols.values())
    try:
        return Traced(_program(found, shapes), symbols), ""
    except Exception as error:
        reason = _first_line(error)
    try:
        return Traced(_program(found, None), {name: {} for name in names}), reason
    except Exception as error:
        kind = type(found.model).__qualname__
        raise ExportError(f"torch.export cannot trace {kind}: {_first_line(error)}") from None


def _program(found: Exportable, shapes: Any) -> ExportedProgram:
    # By position, as one tuple if forward takes *args.
    variadic = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(found.model.forward).parameters.values())
    if shapes is not None and variadic:
        shapes = (shapes,)
    return torch.export.export(found.model, found.inputs, dynamic_shapes=shapes, strict=False)


def _input_names(found: Exportable) -> list[str]:
    parameters = inspect.signature(found.model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += ["input" if number == 0 else f"input_{number}" for number in range(len(names), len(found.inputs))]
    return names[: len(found.inputs)]


def _written(form: ExportFormat, traced: Traced, path: Path, outputs: Sequence[str]) -> Any:
    try:
        if form == "pt2":
            return write_pt2(traced.program, path)
        return write_onnx(traced.program, path, inputs=traced.symbols, outputs=outputs)
    except Exception as error:
        raise ExportError(f"{path.name} cannot be written: {_first_line(error)}") from None


def _sizes(inputs: tuple[Tensor, ...], traced: Traced) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Yield the inputs, and for each size that may change the same with another: one sample, or one place less."""
    yield "", inputs
    of_inputs = list(traced.symbols.values())
    for symbol in dict.fromkeys(symbol for symbols in of_inputs for symbol in symbols.values()):
        smaller = list(inputs)
        for number, symbols in enumerate(of_inputs):
            for dim in (dim for dim, name in symbols.items() if name == symbol):
                size = 1 if dim == 0 else smaller[number].shape[dim] - 1
                smaller[number] = smaller[number].narrow(dim, 0, size).contiguous()
        yield symbol, tuple(smaller)


def _output_symbols(trials: Sequence[Trial]) -> list[dict[int, str]]:
    """Return which dimensions of each output follow an input's: those that were others in its trial."""
    whole = trials[0].outputs
    symbols: list[dict[int, str]] = [{} for _ in whole]
    for trial in trials[1:]:
        for number, output in enumerate(trial.outputs):
            sizes = zip(output.shape, whole[number].shape, strict=True)
            symbols[number] |= {dim: trial.symbol for dim, (a, b) in enumerate(sizes) if a != b}
    return symbols


def _described(
    names: Iterable[str], tensors: Sequence[Tensor], symbols: Sequence[Mapping[int, str]]
) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [of_tensor.get(dim, size) for dim, size in enumerate(tensor.shape)],
        }
        for name, tensor, of_tensor in zip(names, tensors, symbols, strict=True)
    ]


def _kinds(values: Iterable[Any]) -> str:
    return ", ".join(type(value).__name__ for value in values) or "none"


def _first_line(error: Exception) -> str:
    """Return the line of torch's page of advice that says what is wrong: the first of its list, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    listed = [line.removeprefix("- ").partition(". ")[0] for line in lines if line.startswith("- ")]
    return f"{type(error).__name__}: {[*listed, *lines][0]}" if lines else type(error).__name__


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` that takes its place at the end; after an error it is gone, and nothing else."""
    part = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    part.mkdir(parents=True)
    try:
        yield part
        old = folder.with_name(f"{part.name}-old")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):  # rmdir leaves a folder that holds anything
            folder.parent.rmdir()
