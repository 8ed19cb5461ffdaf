"""Which key of the configuration an error raised by a constructor belongs to."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from firstlight.cli._errors import UsageError
from firstlight.cli._say import short

_CONSTRUCTORS = ("__init__", "__post_init__")
_LIBRARIES = ("firstlight", "lightning", "torch", "contextlib")
_REFUSE = ("firstlight.modules.", "lightning.")


def blame(error: Exception, config: dict[str, Any], roots: dict[str, str]) -> UsageError:
    """Return a short error for one that a constructor raised.

    ``roots`` maps the class paths that stand without a ``class_path`` to their key.
    """
    places = {**{path: key for key, path in _class_paths(config)}, **roots}
    by_name = {path.rpartition(".")[2]: key for path, key in places.items()}
    key = ""
    for frame in _frames(error.__traceback__):
        if frame.f_code.co_name in _CONSTRUCTORS and "self" in frame.f_locals:
            kind = type(frame.f_locals["self"])
            key = places.get(f"{kind.__module__}.{kind.__qualname__}") or by_name.get(kind.__name__) or key
    for frame in () if key else _frames(error.__traceback__):
        # jsonargparse's own loop over the keys: of nested values it knows only the outer one.
        key = getattr(frame.f_locals.get("component"), "dest", None) or key
    message, _, bullets = (str(error).strip() or type(error).__name__).partition("Errors:\n")
    if bullets:
        message = bullets.strip().splitlines()[0].removeprefix("- ")
    last = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.endswith("_require.py")][-1]
    place = f"raised in {short(last.filename)}:{last.lineno} ({last.name})"
    problem = f"{key}: {message}" if key else message
    return UsageError(problem, "" if bullets else place)


def passed_through(error: BaseException, function: str) -> bool:
    """Whether the error came up through a function of this name."""
    return any(frame.f_code.co_name == function for frame in _frames(error.__traceback__))


def refused(error: BaseException) -> bool:
    """Whether a training was refused for what it was given: by a raise statement, not by a call that failed.

    A callback of ours says all that is to be said. What our modules and Lightning refuse may be a fault of the
    project's code, unless there is none on the way.
    """
    on_purpose = (traceback.extract_tb(error.__traceback__)[-1].line or "").startswith("raise ")
    modules = [str(frame.f_globals.get("__name__", "")) for frame in _frames(error.__traceback__)]
    names = [name for name in modules if name != "firstlight._require"]
    if not on_purpose or not names:
        return False
    known = all(name.partition(".")[0] in _LIBRARIES for name in names)
    return names[-1].startswith("firstlight.callbacks.") or (known and names[-1].startswith(_REFUSE))


def _frames(trace: TracebackType | None) -> list[Any]:
    return [frame for frame, _ in traceback.walk_tb(trace)]


def _class_paths(value: Any, key: str = "") -> list[tuple[str, str]]:
    found = []
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            found.append((key, value["class_path"]))
        for name, inner in value.items():
            found += _class_paths(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _class_paths(inner, f"{key}[{index}]")
    return found
