"""What an answer must be, and what is said when it is not: the value, what is expected, the fix.

Standard library only: the hooks run this under the interpreter that cookiecutter was installed with.
"""

from __future__ import annotations

import difflib
import keyword
import re
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path

PROJECT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 ._-]{0,62}[A-Za-z0-9]")
PACKAGE_NAME = re.compile(r"[a-z][a-z0-9_]{1,63}")
# Projects that a package of this name would hide, or that would hide it.
TAKEN = """
    firstlight lightning lightning_fabric lightning_utilities pytorch_lightning torch torchvision torchaudio
    torchtext torchmetrics jsonargparse wandb numpy scipy sklearn pandas matplotlib yaml omegaconf pytest mypy
    ruff hatchling setuptools pip wheel tests configs runs src build dist
""".split()
# Python 3.9, which may run this hook, has no list of its own modules.
STDLIB = (
    getattr(sys, "stdlib_module_names", ())
    or """
    abc ast asyncio base64 bisect builtins calendar cmath cmd code codecs collections concurrent copy csv ctypes
    dataclasses datetime decimal difflib dis email enum fractions functools gc getpass glob gzip hashlib heapq
    html http imaplib importlib inspect io ipaddress itertools json keyword linecache locale logging math
    mimetypes multiprocessing numbers operator os pathlib pickle pkgutil platform pprint profile queue random re
    sched secrets select selectors shelve shutil signal site socket sqlite3 ssl stat statistics string struct
    subprocess symtable sys sysconfig tempfile test textwrap threading time timeit token trace traceback types
    typing unicodedata unittest urllib uuid venv warnings wave weakref xml zipfile zlib zoneinfo
""".split()
)


def ascii_form(text: str, pattern: str, fill: str) -> str:
    """The nearest text without accents and odd signs, to be offered as the fix."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(pattern, fill, plain).strip(" ._-")


def shown(value: str) -> str:
    """The value on one short line, whatever it holds."""
    text = ascii(value)
    return text if len(text) <= 50 else text[:47] + "..."


def project_name_fault(name: str) -> str:
    """What is wrong with the project's name, or nothing."""
    if PROJECT_NAME.fullmatch(name) and re.search(r"[ ._-]{2}", name) is None:
        return ""
    near = ascii_form(re.sub(r"[ ._-]+", lambda run: run.group()[0], name)[:64], r"[^A-Za-z0-9 ._-]+", "")
    near = near if PROJECT_NAME.fullmatch(near) else "My Project"
    return (
        f"project_name = {shown(name)} cannot name a project.\n"
        "  expected: 2 to 64 letters (a-z, no accents), digits and single spaces, '.', '-', '_'; a letter first\n"
        f'  fix:      project_name="{near}"'
    )


def package_name_fault(name: str) -> str:
    """What is wrong with the package's name, or nothing."""
    lowered = ascii_form(name.lower(), r"[^a-z0-9]+", "_").strip("_")
    if not PACKAGE_NAME.fullmatch(name) or name.startswith("_") or name.endswith("_"):
        why = "is not a package name that Python can import"
        near = re.sub(r"^[0-9_]+", "", lowered)[:64].strip("_")
        near = near if PACKAGE_NAME.fullmatch(near) else "my_project"
    elif keyword.iskeyword(name):
        why, near = "is a keyword of Python", f"{name}_project"
    elif name in STDLIB:
        why, near = "is the name of a module of Python itself", f"my_{name}"
    elif name in TAKEN:
        why, near = "is the name of another package or folder that the project uses", f"my_{name}"
    else:
        return ""
    if keyword.iskeyword(near) or near in STDLIB or near in TAKEN:
        near = f"my_{near}"
    return (
        f"package_name = {shown(name)} {why}.\n"
        "  expected: 2 to 64 of a-z, 0-9 and '_', a letter first; by default it follows project_name\n"
        f"  fix:      package_name={near}"
    )


def author_fault(author: str) -> str:
    """What is wrong with the author, or nothing."""
    if 0 < len(author.strip()) <= 100 and author.isprintable() and not set(author) & set("{}"):
        return ""
    return (
        f"author = {shown(author)} cannot stand in the project's files.\n"
        "  expected: 1 to 100 characters on one line, without braces\n"
        '  fix:      author="Ada Lovelace"'
    )


def command_line_fault(arguments: list[str], known: list[str]) -> str:
    """A key that nobody asked for (cookiecutter drops it in silence), or a value that is Jinja."""
    program = Path(arguments[0]) if arguments else Path()
    if program.stem != "cookiecutter" and program.parent.name != "cookiecutter":
        return ""  # a program that uses cookiecutter as a library: its arguments are its own
    for argument in arguments[1:]:
        key, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
            continue
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) if key[0] != "_" else []
            fix = f"did you mean {near[0]}?" if near else "leave it out"
            return f"{key} is not a question of this template.\n  expected: {', '.join(known)}\n  fix:      {fix}"
        if "{" in value:
            return (
                f"{key} = {shown(value)} holds a brace.\n"
                "  expected: plain text; cookiecutter runs what stands in double braces\n"
                "  fix:      leave the braces out"
            )
    return ""


def answers_fault(answers: Mapping[str, str]) -> str:
    """The first reason not to make a project from these answers, or nothing."""
    faults = (
        project_name_fault(answers["project_name"]),
        package_name_fault(answers["package_name"]),
        author_fault(answers["author"]),
    )
    for fault in faults:
        if fault:
            return fault
    if not re.fullmatch(r"[a-z][a-z0-9-]{1,63}", answers["__project_slug"]):
        return "__project_slug follows from project_name.\n  expected: not given\n  fix:      leave it out"
    return ""
