"""The space of a search: a YAML file of configuration keys, each with what it may be."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from firstlight.cli._errors import UsageError, nearest
from firstlight.cli._say import short

_MOST_IN_A_SWEEP = 64


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, which belong to it."""

    low: float
    high: float
    log: bool = False
    step: int | None = None  # whole numbers if given

    def points(self, count: int) -> list[Any]:
        """Return evenly spread numbers, the bounds among them."""
        shares = [i / (count - 1) for i in range(count)]
        if self.log:
            logs = [math.log(self.low) + share * math.log(self.high / self.low) for share in shares]
            spread = [float(f"{math.exp(value):.12g}") for value in logs]  # the ends as they were written
        else:
            spread = [self.low + share * (self.high - self.low) for share in shares]
        if self.step is None:
            return spread
        return sorted({int(self.low) + self.step * round((value - self.low) / self.step) for value in spread})


@dataclass(frozen=True)
class Choice:
    """Values by name; one may be a mapping with ranges and choices inside, and an empty one leaves all as it is."""

    options: Mapping[str, Any]


Node: TypeAlias = Range | Choice
Space: TypeAlias = dict[str, Node]
Draw: TypeAlias = Callable[[str, Node], Any]  # name and node -> a number, or the name of an option


def read_space(path: Path) -> Space:
    """Return the space in a file.

    Raises:
        UsageError: If the file is missing, is not YAML, or says something else than a space.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(short(file) for file in sorted(path.parent.glob("priority_*.yaml")))
        raise UsageError(f"there is no search space {short(path)}", f"there is: {there}" if there else "") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{short(path)}{line} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(given, dict) or not given:
        raise UsageError(f"{short(path)} must hold configuration keys, each with a range or a choice")
    return {str(key): _node(value, f"{short(path)}, {key}") for key, value in given.items()}


def _node(value: Any, where: str) -> Node:
    if not isinstance(value, dict) or len(value) != 1:
        raise UsageError(f"{where}: must be one of {', '.join(_KINDS)} and its values; got {value!r}")
    ((kind, inner),) = value.items()
    if kind not in _KINDS:
        known = f"known: {', '.join(_KINDS)}"
        raise UsageError(f"{where}: {kind!r} is no kind of range{nearest(str(kind), _KINDS)}", known)
    return _choice(inner, where) if kind == "choice" else _range(kind, inner, where)


_KINDS = ("uniform", "log_uniform", "int", "log_int", "choice")


def _range(kind: str, given: Any, where: str) -> Range:
    whole = kind.endswith("int")
    form = "[low, high, step]" if kind == "int" else "[low, high]"
    numbers = given if isinstance(given, list) else []
    right_kind = all(type(n) is int if whole else type(n) in (int, float) for n in numbers)
    if len(numbers) not in ((2, 3) if kind == "int" else (2,)) or not right_kind:
        number = "whole numbers" if whole else "numbers (YAML reads 1e-3 as text: write 1.0e-3 or 0.001)"
        raise UsageError(f"{where}: {kind} must be {form} of {number}; got {given!r}")
    low, high = numbers[:2]
    step = int(numbers[2]) if len(numbers) == 3 else 1
    if not (math.isfinite(low) and math.isfinite(high) and low < high and step >= 1):
        raise UsageError(f"{where}: {kind} must rise from low to high; got {given!r}")
    if kind.startswith("log") and low <= 0:
        raise UsageError(f"{where}: {kind} must begin above zero; got {given!r}")
    if whole:
        return Range(low, high - (high - low) % step, log=kind.startswith("log"), step=step)
    return Range(float(low), float(high), log=kind.startswith("log"))


def _choice(given: Any, where: str) -> Choice:
    if isinstance(given, list):
        nameless = [value for value in given if isinstance(value, (dict, list))]
        if nameless:
            raise UsageError(f"{where}: choices that are no plain values need names: choice: {{name: {nameless[0]!r}}}")
        given = {_name_of(value): value for value in given}
    if not isinstance(given, dict) or len(given) < 2:
        raise UsageError(f"{where}: choice must have at least two values; got {given!r}")
    return Choice({_name_of(name): _tree(value, f"{where}, {name}") for name, value in given.items()})


def _name_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tree(value: Any, where: str) -> Any:
    """Find ranges and choices inside of a choice: the learning rate of an optimizer belongs to it."""
    if isinstance(value, dict):
        if len(value) == 1 and next(iter(value)) in _KINDS:
            return _node(value, where)
        return {key: _tree(inner, f"{where}.{key}") for key, inner in value.items()}
    return [_tree(inner, where) for inner in value] if isinstance(value, list) else value


def values(space: Space, draw: Draw) -> dict[str, Any]:
    """Return a value for every key that is to change, each number and option drawn by its name.

    >>> space = {"lr": Range(0.1, 1.0), "net": Choice({"as_is": {}, "wide": {"width": Range(2, 8, step=2)}})}
    >>> values(space, lambda name, node: 4 if name == "net.wide.width" else "wide" if name == "net" else 0.5)
    {'lr': 0.5, 'net': {'width': 4}}
    >>> values(space, lambda name, node: "as_is" if name == "net" else 0.5)
    {'lr': 0.5}
    """
    drawn = {key: _drawn(node, key, draw) for key, node in space.items()}
    return {key: value for key, value in drawn.items() if value != {}}


def _drawn(value: Any, name: str, draw: Draw) -> Any:
    if isinstance(value, Range):
        return draw(name, value)
    if isinstance(value, Choice):
        option = draw(name, value)
        return _drawn(value.options[option], f"{name}.{option}", draw)
    if isinstance(value, dict):
        return {key: _drawn(inner, f"{name}.{key}", draw) for key, inner in value.items()}
    return [_drawn(inner, f"{name}.{i}", draw) for i, inner in enumerate(value)] if isinstance(value, list) else value


def unfolded(node: Node, points: int) -> list[Any]:
    """Return every value of a node, with ``points`` numbers for each range inside of it.

    >>> unfolded(Choice({"a": {"x": Range(1.0, 3.0)}, "b": 2}), 3)
    [{'x': 1.0}, {'x': 2.0}, {'x': 3.0}, 2]
    """
    return list(itertools.islice(_unfolded(node, points), _MOST_IN_A_SWEEP + 1))


def _unfolded(value: Any, points: int) -> Iterator[Any]:
    if isinstance(value, Range):
        yield from value.points(points)
    elif isinstance(value, Choice):
        for option in value.options.values():
            yield from _unfolded(option, points)
    elif isinstance(value, dict):
        for row in itertools.product(*(list(_unfolded(inner, points)) for inner in value.values())):
            yield dict(zip(value, row, strict=True))
    elif isinstance(value, list):
        yield from ([*row] for row in itertools.product(*(list(_unfolded(inner, points)) for inner in value)))
    else:
        yield value


def as_it_is(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """Return which number or option of the space the configuration has now, for the keys where it has one."""
    found: dict[str, Any] = {}
    for key, node in space.items():
        value = at(config, key)
        if isinstance(node, Choice):
            same = [name for name, option in node.options.items() if option == {} or option == value]
            if same:
                found[key] = same[0]
        elif type(value) in (int, float) and node.low <= value <= node.high and _is_on_grid(node, value):
            found[key] = value
    return found


def _is_on_grid(node: Range, value: float) -> bool:
    return node.step is None or (value == int(value) and (value - node.low) % node.step == 0)


def at(config: Any, key: str) -> Any:
    """Return the value at a dotted key; ``init_args`` need not be said. None where there is nothing.

    >>> at({"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}}, "optimizer.lr")
    0.1
    """
    for part in key.split("."):
        if isinstance(config, dict) and part not in config and "init_args" in config:
            config = config["init_args"]
        config = config.get(part) if isinstance(config, dict) else None
    return config


def overlay(config: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return the part of a configuration that stands at the keys, as a file for ``--config``.

    >>> overlay({"data": {"batch_size": 8, "n": 1}, "trainer": {"max_epochs": 3}}, ["data.batch_size"])
    {'data': {'batch_size': 8}}
    """
    found: dict[str, Any] = {}
    for key in keys:
        inner, source = found, config
        *parents, last = key.split(".")
        for part in parents:
            inner, source = _inside(inner, source, part)
            inner, source = inner.setdefault(part, {}), source.get(part) or {}
        inner, source = _inside(inner, source, last)
        if last in source:  # what another optimizer does not know is gone
            inner[last] = source[last]
    return found


def _inside(inner: dict[str, Any], source: dict[str, Any], part: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Go down into init_args where the key passes through a class, and take the class along."""
    if "class_path" not in source:
        return inner, source
    inner["class_path"] = source["class_path"]
    if part in ("class_path", "init_args"):
        return inner, source
    return inner.setdefault("init_args", {}), source.get("init_args") or {}


def word(key: str, value: Any) -> str:
    """Return the argument that sets a key.

    >>> word("model.optimizer", {"class_path": "SGD"})
    '--model.optimizer={"class_path": "SGD"}'
    """
    return f"--{key}={as_text(value)}"


def as_text(value: Any) -> str:
    """Return a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)
