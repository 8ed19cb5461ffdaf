"""Configuration files: found from any folder, read early, and remembered for messages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType

from firstlight.cli._errors import UsageError, nearest
from firstlight.cli._say import short

_FLAGS = ("-c", "--config")
_MOST_VALUES = 100_000
_STRING = "tag:yaml.org,2002:str"


class ConfigFiles:
    """The files of one command line, in the order in which they are laid over each other."""

    def __init__(self, project_root: Path) -> None:
        self.project_root = project_root
        self.default = project_root / "configs" / "default.yaml"
        self.files: list[Path] = []

    def prepare(self, argv: list[str], subcommands: Iterable[str], under: str = "{}") -> list[str]:
        """Return the arguments with the default file first and every file's full path.

        ``under`` is a configuration in JSON that lies over the default file and under all that was given.

        Raises:
            UsageError: For a subcommand that does not exist, and a file that is missing or not YAML.
        """
        start = self._subcommand_index(argv, list(subcommands))
        self.files = []
        head = self._with_full_paths(argv[:start])
        base: list[str] = []
        if self.default.is_file():
            base = self._option(self._checked(self.default))
        if under != "{}":
            base += ["--config", under]
        return [*head, *base, *self._with_full_paths(argv[start:])]

    def _subcommand_index(self, argv: list[str], subcommands: list[str]) -> int:
        """Where the arguments of the subcommand start."""
        if not subcommands:
            return 0
        for index, word in enumerate(argv):
            if word.startswith("-") or (index > 0 and argv[index - 1] in _FLAGS):
                continue
            if word not in subcommands:
                known = ", ".join(subcommands)
                raise UsageError(f"{word!r} is no subcommand{nearest(word, subcommands)}", f"known: {known}")
            return index + 1
        return len(argv)

    def _with_full_paths(self, argv: list[str]) -> list[str]:
        found: list[str] = []
        words = iter(argv)
        for word in words:
            flag, equals, value = word.partition("=")
            name = value if equals else next(words, None) if flag in _FLAGS else None
            if flag not in _FLAGS or name is None:
                found.append(word)
            else:
                found += self._option(self._find(name))
        return found

    def _option(self, file: str) -> list[str]:
        """Two words for jsonargparse; none for a file of comments, which it would refuse."""
        return ["--config", file] if file else []

    def _find(self, name: str) -> str:
        """Look in the working directory, then in the project."""
        if name.lstrip().startswith("{"):
            return name  # jsonargparse also takes the configuration itself
        for place in (Path.cwd(), self.project_root):
            candidate = place / Path(name).expanduser()
            if candidate.is_file():
                return self._checked(candidate.resolve())
        known = sorted(self._existing())
        places = dict.fromkeys([str(Path.cwd()), str(self.project_root)])
        raise UsageError(
            f"config file {name!r} is missing{nearest(name, known)}",
            f"looked in: {', '.join(places)}",
            f"there is: {', '.join(known)}" if known else "",
        )

    def _existing(self) -> set[str]:
        found: set[str] = set()
        for place in (Path.cwd(), self.project_root):
            for pattern in ("*.y*ml", "configs/**/*.y*ml"):
                found.update(str(file.relative_to(place)) for file in place.glob(pattern))
        return found

    def _checked(self, file: Path) -> str:
        node = _compose(file)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{short(file)} must hold keys and values; it holds {_shown(node)}")
        if node is not None:
            _refuse_size(node, file)
            _refuse_odd_nodes(node, file, set())
            _refuse_odd_top(node, file)
        self.files.append(file)
        return os.fspath(file) if node is not None else ""

    def locate(self, key: str, subcommand: str | None, argv: list[str]) -> str:
        """Return where a key got its value: the argument, or ``file:line`` of the topmost file; empty if nowhere."""
        plain = key.replace(".init_args", "").removesuffix(".class_path")
        for word in argv:
            option = word.partition("=")[0].removeprefix("--").replace(".init_args", "").removesuffix(".class_path")
            if word.startswith("--") and (option == plain or option.startswith(f"{plain}.")):
                return f"the argument {word}"
        for file in reversed(self.files):
            parts = key.split(".")
            for path in (parts, [subcommand or "", *parts]):
                line = _line(_compose(file), path)
                if line:
                    return f"{short(file)}:{line}"
        return ""


def _compose(file: Path) -> Any:
    try:
        return yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UsageError(f"{short(file)}:{line} is not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UsageError(f"{short(file)} is nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{short(file)} is not valid YAML: {str(error).splitlines()[0]}") from None


def _inner(node: yaml.Node) -> list[yaml.Node]:
    """Return what a node holds: keys and values, or items."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse_size(root: yaml.Node, file: Path) -> None:
    """A few lines of aliases of aliases can stand for billions of values, or for themselves."""
    sizes: dict[int, int | None] = {}  # None: its own parts are being counted

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None
            sizes[id(node)] = 1 + sum(map(size, _inner(node)))
        found = sizes[id(node)]
        line = node.start_mark.line + 1
        if found is None:
            raise UsageError(f"{short(file)}:{line} is an alias of what it stands in")
        if found > _MOST_VALUES:
            raise UsageError(f"{short(file)}:{line} stands for {found} values by its aliases; at most {_MOST_VALUES}")
        return found

    try:
        size(root)
    except RecursionError:
        raise UsageError(f"{short(file)} is nested too deeply") from None


def _refuse_odd_nodes(node: yaml.Node, file: Path, visited: set[int]) -> None:
    """Refuse a key that is there twice, of which YAML would keep the last, a class without name, and foreign tags."""
    visited.add(id(node))  # aliases make one node appear many times
    seen: set[str] = set()
    if not node.tag.startswith("tag:yaml.org,2002:") or ":python/" in node.tag:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise UsageError(f"{_place(node, file)} has the tag {tag!r}; only plain values are taken")
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value in seen and key.value != "<<":
            raise UsageError(f"{_place(key, file)} gives the key {key.value!r} a second time")
        if key.value == "class_path" and (value.tag != _STRING or not value.value):
            raise UsageError(f"{_place(key, file)}: class_path must name a class; it holds {_shown(value)}")
        seen.add(str(key.value))
    for inner in _inner(node):
        if id(inner) not in visited:
            _refuse_odd_nodes(inner, file, visited)


def _refuse_odd_top(node: yaml.MappingNode, file: Path) -> None:
    """Refuse what jsonargparse and Lightning would trip over."""
    for key, value in node.value:
        if key.tag not in (_STRING, "tag:yaml.org,2002:merge"):
            raise UsageError(f"{_place(key, file)}: a key must be a name; got {_shown(key)}")
        if key.value == "trainer" and not isinstance(value, yaml.MappingNode):
            raise UsageError(f"{_place(key, file)}: trainer must hold keys and values; it holds {_shown(value)}")


def _place(node: yaml.Node, file: Path) -> str:
    return f"{short(file)}:{node.start_mark.line + 1}"


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value!r:.40}"
    return "a list" if isinstance(node, yaml.SequenceNode) else "keys and values"


def _line(node: Any, path: list[str]) -> int:
    if not path:
        return 0
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == path[0]:
            return int(key.start_mark.line) + 1 if len(path) == 1 else _line(value, path[1:])
    return 0


def words(args: ArgsType) -> list[str]:
    """Return arguments as the words of a command line; values given as a mapping lie over every file."""
    if args is None:
        return sys.argv[1:]
    if isinstance(args, list):
        return list(args)
    values = args.as_dict() if isinstance(args, Namespace) else dict(args)
    subcommand = values.pop("subcommand", None)
    if subcommand is None:
        return ["--config", json.dumps(values)]
    return [subcommand, "--config", json.dumps(values.get(subcommand, {}))]
