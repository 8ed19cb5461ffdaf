"""Packs the firstlight that lies beside this template as a wheel, with the standard library alone.

A generated project has to install on a machine that has neither an index with firstlight on it nor
this checkout, and may hold no absolute path. So it carries the wheel. A test compares the result with
what hatchling builds.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
import zipfile
from pathlib import Path

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same sources give the same bytes
UNWANTED = {"__pycache__", ".DS_Store"}


def find_sources(checkout: Path) -> Path | None:
    """The package's folder in a checkout, or None where there is no such thing (an old template cache)."""
    package = checkout / "plugins" / "firstlight"
    return package if (package / "__init__.py").is_file() and (checkout / "pyproject.toml").is_file() else None


def read_version(package: Path) -> str:
    """``__version__`` without importing the package."""
    found = re.search(r'^__version__ = "([^"]+)"', (package / "__init__.py").read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"no __version__ in {package.name}/__init__.py")
    return found.group(1)


def read_table(text: str, name: str) -> dict[str, str]:
    """Keys and raw values of one TOML table. Python 3.9 and 3.10, which may run this, have no tomllib."""
    found = re.search(rf"^\[{re.escape(name)}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return {}
    entries = re.split(r"^(\"?[\w.-]+\"?) *= *", found.group(1), flags=re.MULTILINE)
    return {key.strip('"'): value for key, value in zip(entries[1::2], entries[2::2])}


def read_value(raw: str) -> object:
    """A TOML string, or list or table of strings: also a Python literal once `key =` became `'key':`."""
    raw = re.sub(r"([{,] *)(\w+) *= *", r"\1'\2': ", raw)
    return ast.literal_eval(raw.strip())


def as_strings(raw: str) -> list[str]:
    """A TOML list of strings."""
    value = read_value(raw)
    return [str(item) for item in value] if isinstance(value, list) else []


def requirement(text: str, extra: str = "") -> str:
    """One Requires-Dist line; an extra is a marker."""
    text, _, marker = (part.strip() for part in text.partition(";"))
    markers = [part for part in (marker and f"({marker})", extra and f"extra == '{extra}'") if part]
    return f"Requires-Dist: {text}" + (f"; {' and '.join(markers)}" if markers else "")


def needs_of(extra: str, extras: dict[str, str], name: str) -> list[str]:
    """What an extra needs; one that names the project's other extras needs what they need."""
    found: list[str] = []
    for text in as_strings(extras[extra]):
        own = re.fullmatch(rf"{re.escape(name)}\[([\w, -]+)\]", text)
        others = [needs_of(other.strip(), extras, name) for other in own.group(1).split(",")] if own else [[text]]
        found.extend(need for needs in others for need in needs)
    return found


def metadata(pyproject: str, version: str) -> str:
    """The METADATA file: what pip reads to install the dependencies."""
    project = read_table(pyproject, "project")
    extras = read_table(pyproject, "project.optional-dependencies")
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {read_value(project['name'])}",
        f"Version: {version}",
        f"Summary: {read_value(project['description'])}",
        f"License-Expression: {read_value(project['license'])}",
        f"Requires-Python: {read_value(project['requires-python'])}",
        *(requirement(text) for text in as_strings(project["dependencies"])),
    ]
    for extra in extras:
        lines.append(f"Provides-Extra: {extra}")
        lines.extend(requirement(text, extra) for text in needs_of(extra, extras, str(read_value(project["name"]))))
    return "\n".join(lines) + "\n"


def entry_points(pyproject: str) -> str:
    """The entry_points.txt file: console scripts and plug-in groups; empty where there are none."""
    tables = {"console_scripts": read_table(pyproject, "project.scripts")}
    for name in re.findall(r"^\[project\.entry-points\.([^\]]+)\]", pyproject, re.MULTILINE):
        tables[name.strip("\"'")] = read_table(pyproject, f"project.entry-points.{name}")
    return "\n".join(
        f"[{group}]\n" + "".join(f"{key} = {read_value(raw)}\n" for key, raw in table.items())
        for group, table in tables.items()
        if table
    )


def wheel_files(checkout: Path, package: Path, version: str) -> dict[str, bytes]:
    """Every file of the wheel but its RECORD."""
    pyproject = (checkout / "pyproject.toml").read_text("utf-8")
    info = f"firstlight-{version}.dist-info"
    files = {
        f"firstlight/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and not UNWANTED & set(path.parts)
    }
    files[f"{info}/METADATA"] = metadata(pyproject, version).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: firstlight template\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    scripts = entry_points(pyproject)
    if scripts:
        files[f"{info}/entry_points.txt"] = scripts.encode()
    if (checkout / "LICENSE").is_file():
        files[f"{info}/licenses/LICENSE"] = (checkout / "LICENSE").read_bytes()
    return files


def pack_wheel(checkout: Path, folder: Path) -> Path | None:
    """Writes the wheel into ``folder``; None where the checkout has no sources of firstlight."""
    package = find_sources(checkout)
    if package is None:
        return None
    version = read_version(package)
    files = wheel_files(checkout, package, version)
    record = f"firstlight-{version}.dist-info/RECORD"
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}"
        for name, data in files.items()
    ]
    files[record] = "\n".join([*rows, f"{record},,"]).encode() + b"\n"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"firstlight-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, data)
    return target
