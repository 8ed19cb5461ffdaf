"""Reports built by hand of real results and findings: a clean one, a broken one, and one full of traps."""

from __future__ import annotations

import math

from firstlight.checks import CHECKS, Finding, Severity, diagnose
from firstlight.preflight import CheckResult, PreflightReport

TRAP = "<script>alert(1)</script> & \"quotes\" 'too' ]]> \x1b[31mred\x00\n\tbelow " + "very_long_name" * 12
PICTURES = {
    "overfit": {
        "own": [2.3, 40.0, math.inf, math.nan],
        "reference": [2.3, 1.0, 0.2, 0.01, 0.001],
        "constant": 2.3,
        "own_name": "SGD at 0.1",
        "reference_name": "Adam at 0.003",
    },
    "schedule": {"steps": [0, 10, 20], "rates": {"group 0": [0.0, 0.1, 0.05], "group 1": [0.0, 0.01, 0.005]}},
    "inputs": {
        "kind": "images",
        "images": [[[0.0, 1.0], [0.5, math.nan]], [[-1.0, 2.0], [0.0, 0.0]]],
        "histogram": {"edges": [-1.0, 0.0, 1.0, 2.0], "counts": [1, 4, 3]},
        "labels": ["3", TRAP],
    },
    "layers": {"names": ["net.0.weight", TRAP], "gradient": [1e-3, 0.0], "update": [1e-2, math.nan]},
}


def finding(code: str, severity: Severity, **values: object) -> Finding:
    check = next(check for check in CHECKS if check.code == code)
    given = {
        "where": "net.2",
        "value": 96.0,
        "threshold": 10.0,
        "message": f"{check.name} was found",
        "advice": "mend it",
    }
    return Finding(code=code, severity=severity, name=check.name, why=check.why, **(given | values))  # type: ignore[arg-type]


def report(*findings: Finding, others: tuple[CheckResult, ...] = (), **values: object) -> PreflightReport:
    """Return a report of all checks: they passed, but for those of the findings and ``others``."""
    special = {result.code: result for result in others}
    results = []
    for check in CHECKS:
        found = tuple(one for one in findings if one.code == check.code)
        status = str(max(one.severity for one in found)) if found else "passed"
        plain = CheckResult(check.code, check.name, check.title, status, found)  # type: ignore[arg-type]
        results.append(special.get(check.code, plain))
    ranks = {check.code: check.rank for check in CHECKS}
    given = {"seconds": 2.5, "environment": {"module": "Net", "seed": 0}, "readings": {"inputs/std": 1.25}}
    return PreflightReport(tuple(results), diagnose(findings, ranks), **(given | values))  # type: ignore[arg-type]


def skipped(code: str, reason: str) -> CheckResult:
    check = next(check for check in CHECKS if check.code == code)
    return CheckResult(code, check.name, check.title, "skipped", reason=reason)


def crashed(code: str) -> CheckResult:
    check = next(check for check in CHECKS if check.code == code)
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\nKeyError: \'<&"\x1b\''
    return CheckResult(code, check.name, check.title, "crashed", traceback=trace)


def clean() -> PreflightReport:
    return report()


def broken() -> PreflightReport:
    """One root with two symptoms, five warnings, a fact; one check skipped and one crashed."""
    return report(
        finding("FL102", Severity.ERROR, where="src/net.py:12", tried="2.31 to 0.004 in 120 steps on a copy"),
        finding("FL202", Severity.ERROR, value=1.0, threshold=0.95),
        finding("FL301", Severity.ERROR, value=math.inf, where=""),
        *(
            finding(code, Severity.WARNING, where=f"place {code}")
            for code in ("FL103", "FL107", "FL109", "FL110", "FL506")
        ),
        finding("FL404", Severity.INFO, value=None, threshold=None),
        others=(skipped("FL209", "targets are not the inputs shifted by one"), crashed("FL205")),
        pictures=PICTURES,
        readings={"inputs/std": 1.25, "loss/curve": [1.0, math.nan, -math.inf], "deep": {"tuple": (1, 2)}},
    )


def trapped() -> PreflightReport:
    return report(
        finding("FL101", Severity.ERROR, where=TRAP, value=TRAP, message=TRAP, advice=TRAP, threshold=TRAP, tried=TRAP),
        finding("FL102", Severity.ERROR, where=TRAP, message=TRAP),
        finding("FL103", Severity.WARNING, where=TRAP, message=TRAP, advice=TRAP),
        others=(skipped("FL209", TRAP), crashed("FL205")),
        environment={"module": TRAP, "source": "a b.py:3"},
        pictures=PICTURES,
        over_budget=True,
        notes=(TRAP,),
    )


ALL = {"clean": clean, "broken": broken, "trapped": trapped}
