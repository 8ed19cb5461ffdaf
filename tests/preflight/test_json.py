from __future__ import annotations

import json

import pytest
import torch
from preflight.reports import ALL, broken, report

from firstlight.checks import Severity
from firstlight.preflight import PreflightReport, Suppression, apply_suppressions


def strict(text: str) -> dict:
    """RFC 8259 knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", ALL)
def test_it_comes_back_as_it_went(name):
    before = ALL[name]()
    text = before.to_json()
    after = PreflightReport.from_json(text)
    assert strict(text) == strict(after.to_json())
    assert after.exit_code == before.exit_code
    assert repr(after.diagnosis) == repr(before.diagnosis)  # by repr, in which NaN equals NaN
    assert repr(after.results) == repr(before.results)
    assert after.to_html() == before.to_html()


def test_everything_is_in_it_and_the_schema_has_a_number():
    values = strict(broken().to_json())
    assert values["schema"] == 1
    assert values["exit_code"] == 1
    assert [result["code"] for result in values["results"]] == [result.code for result in broken().results]
    assert {result["group"] for result in values["results"]} == {
        "environment",
        "data",
        "model",
        "loss",
        "gradient",
        "update",
        "progress",
    }
    assert "Traceback" in next(result for result in values["results"] if result["code"] == "FL205")["traceback"]
    assert values["readings"]["loss/curve"] == [1.0, "NaN", "-Infinity"]
    assert values["pictures"]["overfit"]["own"] == [2.3, 40.0, "Infinity", "NaN"]
    assert values["diagnosis"]["root"]["severity"] == "error"


def test_ignored_findings_and_notes_come_back():
    shown = apply_suppressions(broken(), [Suppression("FL102", "known", source="x.py:3"), Suppression("FL602", "x")])
    after = PreflightReport.from_json(shown.to_json())
    assert (after.ignored, after.notes) == (shown.ignored, shown.notes)
    assert after.exit_code_at(Severity.ERROR) == shown.exit_code_at(Severity.ERROR)


def test_tensors_and_strangers_among_the_readings_are_no_obstacle():
    values = strict(report(readings={"a": torch.tensor([1.0, float("nan")]), "b": torch.float32, 3: {"x"}}).to_json())
    assert values["readings"] == {"a": [1.0, "NaN"], "b": "torch.float32", "3": "{'x'}"}


@pytest.mark.parametrize("text", ['{"kind": "other"}', "[]", '"x"'])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ValueError, match="the JSON must be a report"):
        PreflightReport.from_json(text)


def test_a_newer_schema_is_refused():
    values = strict(broken().to_json()) | {"schema": 2}
    with pytest.raises(ValueError, match="the schema of the report must be 1 or less; got 2"):
        PreflightReport.from_json(json.dumps(values))
