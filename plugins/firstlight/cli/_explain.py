"""jsonargparse's messages, put into a few lines that name the key and the nearest match.

Only the words change: a message that is not understood is passed on, shortened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser

from firstlight.cli._errors import UsageError, nearest
from firstlight.cli._imports import PACKAGES, may_import
from firstlight.cli._slots import SLOTS

_MANY = 12
_ROOMS_OF_CLASSES = (
    "firstlight.losses",
    "firstlight.regularizers",
    "firstlight.schedules",
    "firstlight.modules",
    "firstlight.callbacks",
    "torch.optim",
    "torch.nn",
    "torchmetrics.classification",
    "torchmetrics.regression",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
)


@dataclass(frozen=True)
class Explainer:
    """Knows what a parser accepts, and where a key was given."""

    known: tuple[str, ...]
    locate: Callable[[str], str]

    def __call__(self, message: str) -> UsageError:
        """Return the error to show for jsonargparse's message."""
        keys: list[str] = []
        owner = ""
        for line in message.splitlines():
            if found := re.search(r'Parser key "([^"]+)":', line):
                keys.append(found[1])
            if found := re.search(r"Problem with given class_path '([^']+)'", line):
                owner = found[1]
                if keys and keys[-1] not in SLOTS:
                    keys.append("init_args")
            key = ".".join(keys)
            error = self._understood(line, key, owner)
            if error:
                return error
        if 'expected "subcommand" to be one of' in message:  # of which jsonargparse names the first five
            return UsageError("a subcommand is missing: fit, validate, test, predict, export or check")
        return self._wrong_type(message, ".".join(keys)) or UsageError(message)

    def _understood(self, line: str, key: str, owner: str) -> UsageError | None:
        if found := re.search(r"Option '([^']+)' is not accepted", line):
            owner = owner or _class_in(line)
            if key in SLOTS:
                return self._unknown_key(f"{key}.{found[1]}", found[1], key, _parameters(owner))
            key = f"{key.removesuffix('.init_args')}.init_args.{found[1]}"
            return self._unknown_key(key, found[1], owner, _parameters(owner))
        if found := re.search(r"does not accept option '([^']+)'", line):
            return self._unknown_path(found[1])
        if found := re.search(r"unrecognized arguments: (\S+)", line):
            if not found[1].startswith("--"):
                return UsageError(f"unexpected argument {found[1]!r}", "options are written --key=value")
            return self._unknown_path(found[1][2:].partition("=")[0])
        if found := re.search(r"Importing '([^']+)' is not allowed", line):
            return UsageError(
                f"{_class_key(key) if key else 'the configuration'} names {found[1]!r}, which it may not import",
                self._where(_class_key(key)),
                f"allowed are this project, {', '.join(PACKAGES)}",
                "another package: FirstlightCLI(..., allowed_packages=[...])",
            )
        if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", line):
            return self._unknown_class(f"{found[1]}.{found[2]}", key)
        if found := re.search(r"No module named '([^']+)'", line):
            return self._unknown_class(owner or found[1], key, line.strip())
        if found := re.search(r"Expected a dot import path string: (\S+)", line):
            return self._unknown_class(found[1], key)
        if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\S+)", line):
            return UsageError(f"{_class_key(key)} must be a {found[2]}; got {found[1]!r}", self._where(key))
        if found := re.search(r"the following arguments are required: (.+)", line):
            names = [re.sub(r"^(fit|validate|test|predict|check)\.", "", name) for name in found[1].split(", ")]
            prefix = f"{key}." if key else ""
            return UsageError(f"{', '.join(prefix + name for name in names)} must be given", self._where(key))
        if key and (found := re.search(r"^\s*Unable to load config '(.*)'", line)):
            return UsageError(f"{key} must hold keys and values; got {found[1]!r}", self._where(key))
        if found := re.search(r"Expected an? (.+)\. Got value: (.*)", line):
            return UsageError(f"{key} must be {_plain(found[1])}; got {found[2]!r}", self._where(key))
        return None

    def _wrong_type(self, message: str, key: str) -> UsageError | None:
        expected = re.search(r"Subtypes: \[(.+)\]$", message, re.MULTILINE)
        given = re.search(r"Given value: (.*)", message)
        if not key or not expected or not given:
            return None
        value = re.sub(r"NestedArg\(key='[^']*', val=(.*)\)", r"\1", given[1])
        return UsageError(f"{key} must be {_plain(expected[1])}; got {value.strip(chr(39))!r}", self._where(key))

    def _unknown_path(self, key: str) -> UsageError:
        parts = key.split(".")
        for depth, part in enumerate(parts):
            parent = ".".join(parts[:depth])
            children = self._children(parent)
            if children and part not in children:
                key = ".".join(parts[: depth + 1])
                return self._unknown_key(key, part, parent or "the configuration", children)
        return self._unknown_key(key, parts[-1], "the configuration", [])

    def _children(self, parent: str) -> list[str]:
        if parent in SLOTS:
            return _parameters(SLOTS[parent].address)
        start = f"{parent}." if parent else ""
        return list(dict.fromkeys(name[len(start) :].split(".")[0] for name in self.known if name.startswith(start)))

    def _unknown_key(self, key: str, word: str, owner: str, known: Iterable[str]) -> UsageError:
        known = list(known)
        names = f"known: {', '.join(known)}" if 0 < len(known) <= _MANY else ""
        return UsageError(f"{key} is no key of {owner}{nearest(word, known)}", self._where(key), names)

    def _unknown_class(self, path: str, key: str, detail: str = "") -> UsageError:
        module, _, name = path.rpartition(".")
        known = {n: f"{room}.{n}" for room in reversed(_ROOMS_OF_CLASSES) for n in _classes(room)}
        if not module and name in known:
            return UsageError(f"{_class_key(key)} names {known[name]!r}, which does not fit there", self._where(key))
        beside = {n: f"{module}.{n}" for n in _classes(module)}
        guess = nearest(name, beside)
        if not guess:
            guess, beside = nearest(name, known), known
        if module and guess:
            guess = f"; did you mean {beside[guess.split(chr(39))[1]]!r}?"
        key = _class_key(key)
        return UsageError(f"{key} names no known class: {path!r}{guess}", self._where(key), detail)

    def _where(self, key: str) -> str:
        while key:
            place = self.locate(key)
            if place:
                return f"in {place}"
            key = key.rpartition(".")[0]
        return ""


def _class_key(key: str) -> str:
    return f"{key.removesuffix('.init_args')}.class_path"


def _class_in(line: str) -> str:
    found = re.search(r"class_path='([^']+)'", line)
    return found[1] if found else "the class"


def _parameters(address: str) -> list[str]:
    """The names that a class takes, also those that it hands on to its parents."""
    module, _, name = address.rpartition(".")
    if not may_import(address):
        return []
    try:
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target, "it", fail_untyped=False)
    names = [action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("it.")]
    return [name for name in dict.fromkeys(names) if name not in ("help", "params")]  # an optimizer gets those itself


def _classes(room: str) -> list[str]:
    if not may_import(room):
        return []
    try:
        module = import_module(room)
    except (ImportError, ValueError):
        return []
    return [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]


def _plain(types: str) -> str:
    """Python's names of types, as one would say them.

    >>> _plain("<class 'int'>, <class 'NoneType'>")
    'int or null'
    >>> _plain("typing.Literal['min', 'max']")
    "'min' or 'max'"
    """
    types = re.sub(r"typing\.Literal\[([^\]]*)\]", r"\1", types)
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types)
    types = re.sub(r"(?:\w+\.)+(\w+)", r"\1", types).replace("NoneType", "null")
    for name, slot in SLOTS.items():
        types = re.sub(rf"\b{slot.address.rpartition('.')[2]}\b", f"the keys of {name}", types)
    parts: list[Any] = types.split(", ")
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
