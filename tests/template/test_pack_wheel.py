"""The wheel that a project carries is the one that hatchling builds, to the letter that pip reads."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .conftest import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "template"))
from firstlight_template.pack_wheel import pack_wheel

sys.path.pop(0)
READ_BY_PIP = ("Name", "Version", "Summary", "License-Expression", "Requires-Python", "Provides-Extra")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[zipfile.ZipFile, zipfile.ZipFile]:
    """The wheel that a project would carry, and hatchling's."""
    folder = tmp_path_factory.mktemp("wheel")
    carried = pack_wheel(CHECKOUT, folder / "carried")
    assert carried is not None
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    assert carried.name == built.name
    return zipfile.ZipFile(carried), zipfile.ZipFile(built)


def test_same_files(wheels: tuple[zipfile.ZipFile, zipfile.ZipFile]) -> None:
    carried, built = wheels
    assert set(carried.namelist()) == set(built.namelist())
    for name in built.namelist():
        if name.endswith((".py", ".typed", "entry_points.txt")):
            assert carried.read(name).split() == built.read(name).split(), name


def test_same_metadata(wheels: tuple[zipfile.ZipFile, zipfile.ZipFile]) -> None:
    (name,) = (name for name in wheels[0].namelist() if name.endswith("/METADATA"))
    carried, built = (Parser().parsestr(wheel.read(name).decode()) for wheel in wheels)
    for key in READ_BY_PIP:
        assert sorted(carried.get_all(key, [])) == sorted(built.get_all(key, [])), key
    needs = [
        {Requirement(text.lower()) for text in metadata.get_all("Requires-Dist", [])} for metadata in (carried, built)
    ]
    assert needs[0] == needs[1]


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (pack_wheel(CHECKOUT, tmp_path / name) for name in "ab")
    assert first is not None
    assert second is not None
    assert first.read_bytes() == second.read_bytes()
    assert pack_wheel(tmp_path, tmp_path / "c") is None
    assert not (tmp_path / "c").exists()
