"""A training script, run up to where it calls ``trainer.fit``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from firstlight.cli._errors import UsageError
from firstlight.cli._target import raised_at, said


class _Reached(BaseException):
    """No Exception: a script may catch those."""

    def __init__(self, trainer: Any, module: LightningModule, data: Any) -> None:
        self.trainer, self.module, self.data = trainer, module, data


def arguments_of_fit(script: str, words: Sequence[str]) -> tuple[Trainer, LightningModule, Any]:
    """Run a script as Python runs it, with ``words``; return Trainer, module and data of its first ``trainer.fit``.

    What the script defines stays ``__main__``, where copies look for their class. Its standard output goes to the
    standard error. Nothing is trained.

    Raises:
        UsageError: There is no such file, it raises, or it ends without a fit.
    """
    path = Path(script).resolve()
    if not path.is_file():
        raise UsageError(f"TARGET: there is no file {script}", f"looked from {Path.cwd()}")
    program = ModuleType("__main__")
    program.__file__ = str(path)
    sys.modules["__main__"] = program
    sys.path.insert(0, str(path.parent))
    sys.argv[:] = [script, *words]
    try:
        with _fit_replaced(), redirect_stdout(sys.stderr):
            exec(compile(path.read_bytes(), str(path), "exec"), program.__dict__)  # noqa: S102  what was asked for
    except _Reached as reached:
        return reached.trainer, reached.module, reached.data
    except SystemExit as error:
        raise UsageError(f"{script} ended with {error.code!r} before it called trainer.fit", _WORDS) from None
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{script} raised before it called trainer.fit: {said(error)}", raised_at(error)) from error
    raise UsageError(f"{script} ended without a call of trainer.fit", f"name the module instead: {script}:Name")


_WORDS = "what it is to be told stands at the end, behind --"


@contextmanager
def _fit_replaced() -> Iterator[None]:
    replaced: list[tuple[Any, Any]] = [(Trainer, _instead)]
    if importlib.util.find_spec("pytorch_lightning"):  # else such a script would really train
        replaced.append((importlib.import_module("pytorch_lightning").Trainer, _of_the_other_package))
    before = [kind.fit for kind, _ in replaced]
    for kind, other in replaced:
        kind.fit = other
    try:
        yield
    finally:
        for (kind, _), fit in zip(replaced, before, strict=True):
            kind.fit = fit


def _instead(
    self: Trainer,
    model: LightningModule,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: LightningDataModule | None = None,
    **_: Any,
) -> NoReturn:
    data = train_dataloaders if datamodule is None else datamodule
    raise _Reached(self, model, data if val_dataloaders is None else (data, val_dataloaders))


def _of_the_other_package(*_: Any, **__: Any) -> NoReturn:
    raise UsageError("the script trains with pytorch_lightning", "a preflight takes what is made of lightning.pytorch")
