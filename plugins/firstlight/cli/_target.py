"""What a word such as ``package.module:Class`` or ``path/to/file.py:Class`` names, built."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from firstlight._require import did_you_mean
from firstlight.cli._errors import UsageError
from firstlight.cli._say import short


def built(target: str, option: str) -> Any:
    """Import what ``target`` names; classes and functions are called without arguments.

    Raises:
        UsageError: it cannot be imported, is not there, or needs arguments.
    """
    found = named(target, option)
    return _called(found, target, option) if isinstance(found, type) or inspect.isroutine(found) else found


def named(target: str, option: str) -> Any:
    """Import what ``target`` names.

    Raises:
        UsageError: it cannot be imported, or is not there.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(
            f"{option} must be package.module:Name or path/to/file.py:Name; got {target!r}",
            "Name is a class or a function that needs no arguments, or an object",
        )
    module = _imported(place, option)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [known for known in vars(found) if not known.startswith("_")] if hasattr(found, "__dict__") else []
            raise UsageError(f"{option}: {place} has no {part!r}{did_you_mean(part, known)}")
        found = getattr(found, part)
    return found


def _imported(place: str, option: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # a console script does not look there, "python -m" does
    try:
        return _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError:
        raise UsageError(f"{option}: there is no file {place}", f"looked from {Path.cwd()}") from None
    except SystemExit:
        raise UsageError(f"{option}: {place} ends the program when it is imported", _GUARD) from None
    except Exception as error:
        raise UsageError(f"{option}: {place} cannot be imported: {said(error)}", raised_at(error)) from error


_GUARD = 'what a script does belongs below: if __name__ == "__main__":'


def _from_file(path: Path) -> ModuleType:
    """Import a file under the name that it has in its package, so that relative imports work."""
    path = path.resolve(strict=True)
    root, name = path.parent, path.stem
    while (root / "__init__.py").is_file():
        root, name = root.parent, f"{root.name}.{name}"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if "." in name:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # copies of what is defined there look for their class by the name of the module
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _called(factory: Any, target: str, option: str) -> Any:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in free]
    if needed:
        raise UsageError(
            f"{option}: {target} needs arguments: {', '.join(needed)}",
            "name a function that takes none and returns what it builds",
        )
    try:
        return factory()
    except Exception as error:
        raise UsageError(f"{option}: {target} cannot be built: {said(error)}", raised_at(error)) from error


def said(error: Exception) -> str:
    """Return kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def raised_at(error: Exception) -> str:
    """Return where an error was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"in {short(error.filename)}:{error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised in {short(last.filename)}:{last.lineno}"
