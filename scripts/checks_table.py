"""Write the table of checks into docs/reference/checks.md, from the checks themselves."""

from __future__ import annotations

import re
from pathlib import Path

from firstlight.checks import known_checks

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "checks.md"
_BLOCK = re.compile(r"(<!-- checks: .* -->\n).*(<!-- end of checks -->)", re.DOTALL)


def with_table(page: str) -> str:
    """Return the page with its table as the checks are now."""
    rows = [
        f"| `{check.code}` | `{check.name}` | {_first(check.__doc__)} | {check.title} |"
        for check in known_checks().values()
    ]
    table = "\n".join(["| code | name | the fault | asked of a healthy set-up |", "|---|---|---|---|", *rows])
    return _BLOCK.sub(lambda found: f"{found[1]}{table}\n\n{found[2]}", page)


def _first(doc: str | None) -> str:
    return " ".join((doc or "").split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
