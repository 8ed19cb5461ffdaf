from __future__ import annotations

import io
import re

import pytest
from preflight.reports import ALL, broken, clean, finding, report, trapped

from firstlight.checks import CHECKS, Severity
from firstlight.preflight import Suppression, apply_suppressions


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(shown, file=None, **kwargs):
    file = file or io.StringIO()
    shown.print(file, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize("show_all", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_no_line_is_wider_than_a_hundred_columns_or_holds_control_characters(name, show_all):
    text = printed(ALL[name](), show_all=show_all)
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


@pytest.mark.parametrize("name", ALL)
def test_every_check_has_one_line_under_its_group(name):
    lines = printed(ALL[name]()).splitlines()
    for check in CHECKS:
        rows = [line for line in lines if re.match(rf"  . {check.code} {check.name} ", line)]
        assert len(rows[:1]) == 1, check.code
    groups = [line for line in lines if line in ("Data", "Model", "Loss", "Gradient", "Update", "Progress")]
    assert groups == ["Data", "Model", "Loss", "Gradient", "Update", "Progress"]


def test_a_row_holds_the_number_against_its_threshold_or_what_was_read():
    text = printed(broken())
    assert re.search(r"✗ FL102 input_scale +96 \(limit 10\) at src/net.py:12$", text, re.MULTILINE)
    assert re.search(r"✓ FL102 input_scale +inputs have unit scale +inputs/std 1.25$", printed(clean()), re.MULTILINE)
    assert re.search(r"– FL209 not_causal +not made$", text, re.MULTILINE)
    assert re.search(r"! FL205 constant_output +the check failed itself$", text, re.MULTILINE)


def test_the_diagnosis_says_what_why_where_and_what_to_change():
    text = printed(broken())
    diagnosis = text[text.index("\nDiagnosis\n") :]
    root = broken().root
    for said in (root.message, root.why, root.advice, root.tried, "src/net.py:12", "96 (limit 10)"):
        assert said in " ".join(diagnosis.split())
    assert diagnosis.index("FL102") < diagnosis.index("explains") < diagnosis.index("FL202 dead_units")
    assert "FL209: targets are not the inputs shifted by one" in text
    assert "FL205: KeyError" in text


def test_three_warnings_are_shown_and_the_rest_is_counted():
    short, full = printed(broken()), printed(broken(), show_all=True)
    assert len(re.findall(r"^  ⚠ FL\d+ \w+ at place", short, re.MULTILINE)) == 3
    assert "3 more findings with show_all=True" in short  # two warnings and a fact
    assert len(re.findall(r"^  ⚠ FL\d+ \w+ at place", full, re.MULTILINE)) == 5
    assert "more finding" not in full
    assert re.search(r"^  i FL404 clip_tiny at net.2: clip_tiny was found", full, re.MULTILINE)


@pytest.mark.parametrize(
    ("variables", "colored"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),  # set but empty is not set: https://no-color.org
        ({"TERM": "dumb"}, False),
    ],
)
def test_color_is_for_terminals_that_want_it(monkeypatch, variables, colored):
    with monkeypatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        text = printed(broken(), Terminal())
        assert ("\x1b[31m" in text) == colored
        assert re.sub(r"\x1b\[\d+m", "", text) == printed(broken())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_the_signs_gets_letters(encoding):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    trapped().print(file)
    file.flush()
    assert re.search(r"^  x FL101 nonfinite_data", raw.getvalue().decode(encoding), re.MULTILINE)


def test_the_first_line_is_the_verdict():
    assert printed(clean()).startswith("PASSED: ")
    assert printed(broken()).startswith("ERROR: cannot learn as written: FL102 input_scale at src/net.py:12")
    for code, does in {"FL001": "run", "FL110": "be judged", "FL505": "learn"}.items():
        assert printed(report(finding(code, Severity.ERROR))).startswith(f"ERROR: cannot {does} as written: {code}")
    assert printed(report(finding("FL103", Severity.WARNING))).startswith("WARNING: 1 warning, first FL103")
    assert printed(report(over_budget=True)).startswith("UNFINISHED: ")


def test_what_is_ignored_is_shown_with_its_reason_and_does_not_pass_for_clean():
    shown = apply_suppressions(report(finding("FL102", Severity.ERROR)), [Suppression("FL102", "bytes are meant")])
    text = printed(shown)
    assert text.startswith("PASSED: nothing was found beside 1 finding that you ignore")
    assert re.search(r"^  ~ FL102 input_scale +ignored$", text, re.MULTILINE)
    assert "FL102 input_scale at net.2: bytes are meant" in text


def test_standard_output_is_the_default(capsys):
    clean().print()
    assert capsys.readouterr().out == printed(clean())
