"""Specs: an object described by plain values, ``{"class_path": ..., "init_args": {...}}``.

Checkpoints store specs instead of objects: they load under ``torch.load(weights_only=True)``, survive a
rename of attributes, and come back with the same class and the same arguments.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight._require import did_you_mean, require

CLASS_PATH, INIT_ARGS = "class_path", "init_args"


def is_spec(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether ``value`` is a mapping that names a class."""
    return isinstance(value, Mapping) and isinstance(value.get(CLASS_PATH), str)


def class_path(cls: type) -> str:
    """Return the address of ``cls``: the public one, where its package re-exports it from a private file.

    >>> class_path(nn.Linear)
    'torch.nn.modules.linear.Linear'
    """
    package, _, file = cls.__module__.rpartition(".")
    if package and file.startswith("_") and getattr(importlib.import_module(package), cls.__name__, None) is cls:
        return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def resolve(path: str) -> Any:
    """Import what ``path`` names; raise ``ValueError`` with the nearest name where there is none."""
    module_name, _, name = path.rpartition(".")
    require(bool(module_name), CLASS_PATH, path, "a full import path such as 'torch.nn.Linear'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"class_path {path!r}: cannot import {module_name!r} ({error})") from error
    if not hasattr(module, name):
        raise ValueError(f"class_path {path!r}: {module_name} has no {name!r}{did_you_mean(name, dir(module))}")
    return getattr(module, name)


def build(value: Any, *, base: type, name: str) -> Any:
    """Return ``value`` if it is a ``base`` already, or the ``base`` that its spec describes.

    Raises:
        TypeError: neither, or the spec names something that is not a subclass of ``base``; arguments that its
            constructor does not take.
        ValueError: a path that cannot be imported, or a spec that a checkpoint could not record.
    """
    if not is_spec(value):
        require(isinstance(value, base), name, value, f"a {base.__name__} or its spec", error=TypeError)
        return value
    path, arguments = value[CLASS_PATH], value.get(INIT_ARGS, {})
    if arguments is None:
        raise ValueError(
            f"{name}: the checkpoint holds a {path} whose constructor arguments could not be recorded; "
            f"pass {name}= to load_from_checkpoint, or build the module from a spec "
            '{"class_path": ..., "init_args": {...}}'
        )
    cls = resolve(path)
    ok = inspect.isclass(cls) and issubclass(cls, base) and _is_buildable(cls)
    expected = "a module, an optimizer or a class of firstlight" if base is object else f"a {base.__name__}"
    require(ok, f"{name}.class_path", path, expected, error=TypeError)
    if issubclass(cls, Optimizer):  # its first argument, the parameters, comes later
        return functools.partial(cls, **arguments)
    built = build_nested(arguments, name=name)
    try:
        return cls(**built) if isinstance(built, Mapping) else cls(*built)
    except TypeError as error:
        known = [p for p in inspect.signature(cls).parameters if p != "self"]
        unknown = next((key for key in arguments if key not in known), None) if isinstance(built, Mapping) else None
        hint = did_you_mean(unknown, known) if unknown else ""
        raise TypeError(f"{name}: {path} does not take these arguments: {error}{hint}") from error


def _is_buildable(cls: type) -> bool:
    """Whether a spec may name ``cls``: specs come from files, and ``Popen`` is a constructor too."""
    return issubclass(cls, (nn.Module, Optimizer)) or cls.__module__.partition(".")[0] == "firstlight"


def build_nested(value: Any, *, name: str) -> Any:
    """Build every spec inside plain containers; leave other values as they are."""
    if is_spec(value):
        return build(value, base=object, name=name)
    if isinstance(value, Mapping):
        return {key: build_nested(item, name=f"{name}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return [build_nested(item, name=f"{name}[{index}]") for index, item in enumerate(value)]
    return value


def spec_of(value: Any) -> Any:
    """Describe ``value`` in plain values.

    Numbers, strings, containers and specs stand for themselves. An object of ours, of torch or of torchmetrics
    becomes a spec when its constructor arguments can be read back from attributes of the same names. Of any other
    only the class is recorded, with ``init_args: None``, which :func:`build` refuses: a lost argument must never
    turn into a default.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (
        int,
        float,
        str,
    ):  # enums and numpy scalars subclass these; weights_only loading refuses them
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): spec_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [spec_of(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, functools.partial) and inspect.isclass(value.func) and not value.args:
        return {CLASS_PATH: class_path(value.func), INIT_ARGS: spec_of(value.keywords)}
    cls: Any = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
    arguments = _arguments(value)
    return {CLASS_PATH: class_path(cls), INIT_ARGS: arguments if _complete(arguments) else None}


def _complete(recorded: Any) -> bool:
    """Whether no spec inside ``recorded`` lost its arguments."""
    if isinstance(recorded, Mapping):
        return not (is_spec(recorded) and recorded.get(INIT_ARGS, {}) is None) and all(
            map(_complete, recorded.values())
        )
    return recorded is not _LOST and (not isinstance(recorded, list) or all(map(_complete, recorded)))


_LOST = object()
# Attributes of these packages mean what the argument of the same name meant; a user's may not (``width * 2``).
_TRUSTED = ("firstlight", "torch", "torchmetrics")
_NOT_RECORDED = ("self", "device", "dtype", "size_average", "reduce")  # where it lives; deprecated


def _arguments(value: Any) -> Any:
    """Read the constructor arguments of ``value`` back from its attributes."""
    package = type(value).__module__.partition(".")[0]
    if type(value) is nn.Sequential:
        return [spec_of(child) for child in value]
    if package not in _TRUSTED or inspect.isclass(value):
        return _LOST
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(value)).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and package == "torchmetrics":
            continue  # how a metric synchronizes, not what it measures
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return _LOST
        if name in _NOT_RECORDED:
            continue
        found = getattr(value, name, _LOST)
        if isinstance(parameter.default, bool) and not isinstance(found, bool) and found is not _LOST:
            found = found is not None  # bias=True makes a parameter of the same name
        if found is _LOST or (isinstance(found, Tensor) and package == "torch"):
            return _LOST
        arguments[name] = spec_of(found)
    return arguments
