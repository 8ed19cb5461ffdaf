"""requirements.lock is the set that constraints.txt and pyproject.toml ask for, and each file of it has its hash."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^([\w.-]+==.*(?:\n    --hash=.*)*)", LOCK, re.MULTILINE)


def requirement(text: str) -> Requirement:
    return Requirement(text.split("\\")[0].split("#")[0].strip())


LOCKED = [requirement(block) for block in BLOCKS]


def test_every_package_has_hashes() -> None:
    assert len(LOCKED) > 100
    assert len(LOCKED) == len(re.findall(r"^\w", LOCK, re.MULTILINE))
    for block in BLOCKS:
        assert re.search(r"\n    --hash=sha256:[0-9a-f]{64}", block), block


def test_the_tested_versions_are_the_locked_ones() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    found = {str(requirement(f"{one.name}{one.specifier}")).lower() for one in LOCKED}
    named = {canonicalize_name(one.name) for one in LOCKED}
    for pin in map(requirement, pins):
        if canonicalize_name(pin.name) in named:
            assert f"{pin.name}{pin.specifier}".lower() in found, f"{pin}: make lock"


def test_all_that_is_asked_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"], *extras["docs"]]
    asked += [one for name in requirement(extras["dev"][0]).extras for one in extras[name]]
    for one in map(requirement, asked):
        if one.name == "firstlight":
            continue
        same = [other for other in LOCKED if canonicalize_name(other.name) == canonicalize_name(one.name)]
        assert same, f"{one}: make lock"
        for other in same:
            assert one.specifier.contains(next(iter(other.specifier)).version), (one, other)
