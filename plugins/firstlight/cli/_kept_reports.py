"""``report``: reports that lie in the folder of a run, shown again."""

from __future__ import annotations

from pathlib import Path

from firstlight.cli._errors import UsageError
from firstlight.preflight import PreflightReport


def reports_in(place: Path) -> list[tuple[Path, PreflightReport]]:
    """Return the reports in a folder and below it, or in one file, the oldest first.

    Raises:
        UsageError: there is no such place, or no report in it.
    """
    if not place.exists():
        raise UsageError(f"there is no folder or file {place}")
    files = [place] if place.is_file() else sorted(place.rglob("*.json"), key=lambda file: (file.stat().st_mtime, file))
    found = []
    for file in files:
        try:
            found.append((file, PreflightReport.from_json(file.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError):  # another program's JSON
            continue
    if not found:
        raise UsageError(f"no report of a preflight in {place}", "check --format json --output FILE writes one")
    return found
