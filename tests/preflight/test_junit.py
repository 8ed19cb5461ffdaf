from __future__ import annotations

from xml.etree import ElementTree

import pytest
from preflight.reports import ALL, broken, finding, report

from firstlight.checks import CHECKS, Severity
from firstlight.preflight import Suppression, apply_suppressions


def suite(shown, fail_on=Severity.ERROR):
    root = ElementTree.fromstring(shown.to_junit(fail_on).encode())  # noqa: S314  our own
    assert root.tag == "testsuites"
    (found,) = root
    cases = found.findall("testcase")
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(found.get(key)) == len([case for case in cases if case.find(tag) is not None])
    assert int(found.get("tests")) == len(cases)
    return found


@pytest.mark.parametrize("name", ALL)
def test_there_is_a_case_a_check_and_the_counts_are_right(name):
    cases = suite(ALL[name]()).findall("testcase")
    assert [case.get("name").split()[0] for case in cases] == [check.code for check in CHECKS]
    assert {case.get("classname") for case in cases} >= {"firstlight.data", "firstlight.progress"}


@pytest.mark.parametrize(("fail_on", "failures"), [(Severity.ERROR, 3), (Severity.WARNING, 8), (Severity.INFO, 9)])
def test_what_fails_depends_on_what_is_asked(fail_on, failures):
    found = suite(broken(), fail_on)
    assert (found.get("failures"), found.get("errors"), found.get("skipped")) == (str(failures), "1", "1")
    assert float(found.get("time")) == 2.5


def test_messages_say_what_and_what_to_change():
    cases = {case.get("name").split()[0]: case for case in suite(broken()).iter("testcase")}
    failure = cases["FL102"].find("failure")
    assert failure.get("message") == "FL102 input_scale at src/net.py:12: input_scale was found"
    assert "change: mend it" in failure.text
    assert "2.31 to 0.004" in failure.text
    assert "column_scale was found" in cases["FL103"].find("system-out").text
    assert cases["FL209"].find("skipped").get("message") == "targets are not the inputs shifted by one"
    assert cases["FL205"].find("error").get("message").startswith("KeyError")
    assert len(cases["FL110"]) == 1
    assert len(cases["FL201"]) == 0


def test_what_is_ignored_is_skipped_with_its_reason():
    shown = apply_suppressions(report(finding("FL102", Severity.ERROR)), [Suppression("FL102", "bytes & more")])
    found = suite(shown)
    assert (found.get("failures"), found.get("skipped")) == ("0", "1")
    assert found.find(".//skipped").get("message") == "ignored: bytes & more"
