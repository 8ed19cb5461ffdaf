"""The files that a model is exported to, each with the runtime that reads it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.export import ExportedProgram

from firstlight._batch import tensors_of
from firstlight.cli._errors import UsageError

ExportFormat: TypeAlias = Literal["pt2", "onnx"]
Runner: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]

_ONNX = ("onnx", "onnxscript", "onnxruntime")


def formats_for(asked: ExportFormat | None) -> list[ExportFormat]:
    """Return the formats to write: the one asked for, else all whose packages are installed.

    Raises:
        UsageError: If packages are missing for the one asked for.
    """
    missing = [name for name in _ONNX if find_spec(name) is None]
    if asked == "onnx" and missing:
        raise UsageError(f"--format onnx needs {', '.join(missing)}: pip install 'firstlight[export]'")
    if asked is not None:
        return [asked]
    return ["pt2"] if missing else ["pt2", "onnx"]


def write_pt2(program: ExportedProgram, path: Path) -> Runner:
    """Write ``torch.export``'s own file; return what runs it, read back."""
    torch.export.save(program, path)
    model = torch.export.load(path).module()
    return lambda inputs: tensors_of(model(*inputs))


def write_onnx(program: ExportedProgram, path: Path, *, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Runner:
    """Write ONNX, with ``inputs`` from name to the symbols of its dimensions; return what runs it, read back."""
    import onnxruntime

    written = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=tuple(inputs.values()) if any(inputs.values()) else None,
    )
    assert written is not None
    written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {found.name for found in session.get_inputs()}  # one that the model does not use is not among them

    def run(values: Sequence[Tensor]) -> list[Tensor]:
        fed = {name: value.numpy() for name, value in zip(inputs, values, strict=True) if name in taken}
        return [torch.as_tensor(found) for found in session.run(None, fed)]

    return run


@contextmanager
def tracing() -> Iterator[None]:
    """Leave out what torch says about its own tracing: the comparison that follows is what counts."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
