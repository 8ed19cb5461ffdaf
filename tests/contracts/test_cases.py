"""The table is whole: every public name has a row, every docstring its lines, every wrong argument its words."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
from contracts.cases import ROOMS, rows

LINES = ("Shapes:", "Unit:", "Law:", "Source:", ">>>")
# Records and bases: they hold what other names return or share, and have no formula of their own.
RECORDS = {"InitReport", "InitRow", "InitRule", "InitPlan", "LsuvReport", "LsuvRow", "Schedule"}


def public(room: str) -> dict[str, Any]:
    module = importlib.import_module(f"firstlight.{room}")
    return {name: getattr(module, name) for name in module.__all__}


def ours() -> list[tuple[str, str]]:
    return [
        (room, name)
        for room in ROOMS
        for name, value in public(room).items()
        if callable(value) and (value.__module__ or "").startswith("firstlight.") and name not in RECORDS
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_row(room):
    assert set(rows(room)) == set(public(room))


@pytest.mark.parametrize(("room", "name"), ours())
def test_every_docstring_has_its_lines_and_an_example(room, name):
    text = inspect.getdoc(public(room)[name]) or ""
    assert [line for line in LINES if line not in text] == []


def bad_cases() -> list[Any]:
    return [
        pytest.param(*case, id=f"{room}-{number}")
        for room in ROOMS
        for number, case in enumerate(importlib.import_module(f"contracts.{room}_cases").BAD)
    ]


@pytest.mark.parametrize(("call", "error", "words"), bad_cases())
def test_wrong_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert len(str(caught.value)) > 20, "says what was given, what is expected and what to do"


def test_there_are_enough_of_them():
    assert len(bad_cases()) >= 40
