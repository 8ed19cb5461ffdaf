"""The parts of the SARIF 2.1.0 standard that a reader relies on, by section."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from preflight.reports import ALL, broken, finding, report, trapped

from firstlight.checks import CHECKS, Severity
from firstlight.preflight import Suppression, apply_suppressions


def run_of(shown) -> dict:
    log = json.loads(shown.to_sarif())
    assert log["version"] == "2.1.0"  # §3.13.2
    assert urlparse(log["$schema"]).path.endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    return run


@pytest.mark.parametrize("name", ALL)
def test_the_required_properties_are_there(name):
    run = run_of(ALL[name]())
    driver = run["tool"]["driver"]
    assert driver["name"] == "firstlight"  # §3.19.8
    rules = driver["rules"]
    assert [rule["id"] for rule in rules] == [check.code for check in CHECKS]
    for invocation in run["invocations"]:
        assert isinstance(invocation["executionSuccessful"], bool)  # §3.20.14
        for notification in invocation["toolExecutionNotifications"]:
            assert notification["message"]["text"]  # §3.58.5
    assert len(run["results"]) == len(ALL[name]().findings)
    for result in run["results"]:
        assert result["message"]["text"].strip()  # §3.27.11
        assert result["level"] in ("none", "note", "warning", "error")  # §3.27.10
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]  # §3.27.6
        for location in result["locations"]:
            physical = location.get("physicalLocation")
            if physical is not None:
                assert not re.search(r"[\s\\<>\"]", physical["artifactLocation"]["uri"])  # RFC 3986
                assert physical["region"]["startLine"] >= 1  # §3.30.5
            else:
                assert location["logicalLocations"][0]["fullyQualifiedName"]


def test_help_is_the_docstring_of_the_check():
    rules = run_of(broken())["tool"]["driver"]["rules"]
    for check, rule in zip(CHECKS, rules, strict=True):
        assert rule["shortDescription"]["text"] == check.title
        assert "Rule:" in rule["help"]["text"]
        assert "Known false alarms:" in rule["help"]["text"]
        assert "\n    " not in rule["help"]["text"]  # without the indentation of the source


def test_a_file_and_line_is_a_place_in_a_file_and_all_else_a_name():
    found = {result["ruleId"]: result["locations"][0] for result in run_of(broken())["results"]}
    assert found["FL102"] == {
        "physicalLocation": {"artifactLocation": {"uri": "src/net.py"}, "region": {"startLine": 12}}
    }
    assert found["FL202"] == {"logicalLocations": [{"fullyQualifiedName": "net.2"}]}
    assert found["FL301"] == {"logicalLocations": [{"fullyQualifiedName": "the set-up"}]}


def test_a_name_is_shown_beside_the_file_of_its_module():
    location = run_of(trapped())["results"][0]["locations"][0]
    assert unquote(location["physicalLocation"]["artifactLocation"]["uri"]) == "a b.py"
    assert location["physicalLocation"]["region"] == {"startLine": 3}
    assert "very_long_name" in location["logicalLocations"][0]["fullyQualifiedName"]


def test_files_below_the_working_directory_are_relative_to_it(tmp_path):
    inside = report(finding("FL102", Severity.ERROR, where=f"{Path.cwd() / 'net.py'}:1"))
    outside = report(finding("FL102", Severity.ERROR, where="/elsewhere/net.py:1"))
    uris = [
        run_of(r)["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for r in (inside, outside)
    ]
    assert uris == ["net.py", "file:///elsewhere/net.py"]


def test_levels_crashes_and_exit_code():
    run = run_of(broken())
    levels = {result["ruleId"]: result["level"] for result in run["results"]}
    assert (levels["FL102"], levels["FL103"], levels["FL404"]) == ("error", "warning", "note")
    (invocation,) = run["invocations"]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (False, 1)
    (notification,) = invocation["toolExecutionNotifications"]
    assert notification["associatedRule"]["id"] == "FL205"


def test_what_is_ignored_is_suppressed_and_says_why():
    entries = [Suppression("FL102", "meant", source="net.py:3"), Suppression("FL202", "old", source="base.json")]
    found = {result["ruleId"]: result for result in run_of(apply_suppressions(broken(), entries))["results"]}
    assert found["FL102"]["suppressions"] == [{"kind": "inSource", "justification": "meant"}]  # §3.35.2
    assert found["FL202"]["suppressions"] == [{"kind": "external", "justification": "old"}]
    assert "suppressions" not in found["FL301"]
