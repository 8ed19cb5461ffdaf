from __future__ import annotations

import json
from datetime import date

import pytest
from preflight.reports import broken, clean, finding, report

from firstlight.checks import Severity
from firstlight.preflight import Suppression, apply_suppressions, comments_in, read_baseline, source_of, write_baseline
from helpers import Plain

TODAY = date(2026, 6, 1)


def test_comments_of_python_are_comments_and_no_strings(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        'TEXT = """\n# firstlight: ignore[FL101] in a string\n"""\n'
        "class Net:  # firstlight: ignore[FL204] starts from a checkpoint\n"
        "    pass  #firstlight:ignore[FL301, FL302] - distillation\n"
    )
    found = [(entry.code, entry.reason, entry.source.rpartition(":")[2]) for entry in comments_in(path)]
    assert found == [
        ("FL204", "starts from a checkpoint", "4"),
        ("FL301", "distillation", "5"),
        ("FL302", "distillation", "5"),
    ]


def test_comments_of_a_configuration(tmp_path):
    path = tmp_path / "default.yaml"
    path.write_text("model:\n  # firstlight: ignore[FL102] bytes\n  lr: 1.0  # firstlight: ignore[FL503] LARS\n")
    assert [(entry.code, entry.reason) for entry in comments_in(path)] == [("FL102", "bytes"), ("FL503", "LARS")]


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("# firstlight: ignore[FL204]", "the reason to ignore FL204 in .*net.py:1 must be given"),
        ("# firstlight: ignore all of it", "the comment in .*net.py:1 must be # firstlight: ignore"),
        ("# firstlight: ignore[dead] why", "the code to ignore in .*net.py:1 must be one such as FL204; got 'dead'"),
    ],
)
def test_a_comment_needs_a_code_and_a_reason(tmp_path, comment, message):
    path = tmp_path / "net.py"
    path.write_text(comment + "\n")
    with pytest.raises(ValueError, match=message):
        comments_in(path)


def test_the_file_of_a_class_is_found():
    assert source_of(Plain()).name == "helpers.py"
    assert source_of(3) is None


def test_an_ignored_root_makes_room_for_the_next_and_is_kept():
    before = broken()
    after = apply_suppressions(before, [Suppression("FL102", "meant", source="net.py:3")], today=TODAY)
    assert after.root.code == "FL202"
    assert [found.code for found in after.diagnosis.symptoms] == ["FL301"]
    assert [(past.finding.code, past.reason, past.source) for past in after.ignored] == [("FL102", "meant", "net.py:3")]
    assert after.results == before.results
    assert before == broken(), "the report that was given is as it was"


def test_a_place_narrows_a_suppression():
    shown = report(finding("FL202", Severity.ERROR, where="net.0"), finding("FL202", Severity.ERROR, where="net.2"))
    after = apply_suppressions(shown, [Suppression("FL202", "meant", "net.0")], today=TODAY)
    assert [found.where for found in after.findings] == ["net.2"]
    assert apply_suppressions(shown, [Suppression("FL202", "meant")], today=TODAY).exit_code == 0


@pytest.mark.parametrize(("expires", "code"), [(date(2026, 6, 1), 0), (date(2026, 5, 31), 1), (None, 0)])
def test_an_expired_entry_counts_again_and_says_so(expires, code):
    entry = Suppression("FL202", "until the new data", expires=expires)
    after = apply_suppressions(report(finding("FL202", Severity.ERROR)), [entry], today=TODAY)
    assert after.exit_code == code
    said = "FL202 at net.2 counts again: accepted until 2026-05-31 (until the new data)"
    assert list(after.notes) == ([said] if code else [])


def test_a_suppression_without_a_finding_is_reported():
    after = apply_suppressions(clean(), [Suppression("FL202", "old", source="net.py:3")], today=TODAY)
    assert after.notes == ("FL202 is ignored in net.py:3, but was not found",)


def test_a_baseline_is_written_read_and_kept(tmp_path):
    path = tmp_path / "baseline.json"
    old = Suppression("FL103", "one-hot columns", "column 3", date(2027, 1, 1))
    write_baseline(path, broken().findings, [old], today=TODAY)
    entries = json.loads(path.read_text())
    assert entries[0] == {"code": "FL103", "where": "column 3", "reason": "one-hot columns", "expires": "2027-01-01"}
    assert entries[1] == {
        "code": "FL102",
        "where": "src/net.py:12",
        "reason": "known on 2026-06-01",
        "expires": "2026-08-30",
    }
    after = apply_suppressions(broken(), read_baseline(path), today=TODAY)
    assert after.findings == []
    assert len(after.ignored) == len(broken().findings)
    assert apply_suppressions(broken(), read_baseline(path), today=date(2026, 8, 31)).exit_code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no baseline: Expecting property name"),
        ("{}", "is no baseline: it must be a list of entries"),
        ('[{"code": "FL102", "where": ""}]', "the reason to ignore FL102 in .* must be given"),
        ('[{"code": "FL102", "reson": "x"}]', "an entry must be {code, where, reason, expires}"),
        ('[{"code": "FL102", "reason": "x", "expires": "soon"}]', "is no baseline: Invalid isoformat"),
        ('["FL102"]', "an entry must be"),
    ],
)
def test_a_baseline_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_baseline(path)


@pytest.mark.parametrize(
    ("shown", "codes"),
    [
        (clean(), (0, 0, 0)),
        (report(finding("FL404", Severity.INFO)), (0, 0, 1)),
        (report(finding("FL103", Severity.WARNING)), (0, 1, 1)),
        (report(finding("FL102", Severity.ERROR)), (1, 1, 1)),
        (report(over_budget=True), (4, 4, 4)),
        (report(finding("FL103", Severity.WARNING), over_budget=True), (4, 1, 1)),
    ],
)
def test_exit_codes_by_what_fails(shown, codes):
    assert tuple(shown.exit_code_at(level) for level in (Severity.ERROR, Severity.WARNING, Severity.INFO)) == codes


def test_a_crash_is_neither_clean_nor_a_finding():
    from preflight.reports import crashed

    assert report(others=(crashed("FL205"),)).exit_code == 3
    assert report(finding("FL102", Severity.ERROR), others=(crashed("FL205"),)).exit_code == 1
    assert report(others=(crashed("FL205"),), over_budget=True).exit_code == 3
