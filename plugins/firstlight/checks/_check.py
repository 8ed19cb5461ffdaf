"""Check, Evidence, Finding, Severity: evidence in, verdict out."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from firstlight._require import require


class Severity(enum.IntEnum):
    """How bad a finding is.

    ``ERROR`` is measured proof that training cannot work as written, ``WARNING`` strong evidence, ``INFO`` a fact worth
    knowing. Only errors change an exit code unless asked otherwise.
    """

    INFO = 10
    WARNING = 20
    ERROR = 30

    def __str__(self) -> str:
        """Return the name in lower case."""
        return self.name.lower()


@dataclass(frozen=True)
class Finding:
    """What a check found: the number, what it was held against, where, why it hurts, what to change.

    ``where`` is a module path, a column, a parameter group or a file and line; empty for the whole set-up. ``tried``
    says what happened when the advice was applied to a copy; ``None`` means that it was not tried.
    """

    code: str
    severity: Severity
    where: str
    value: float | str | None
    threshold: float | str | None
    message: str
    advice: str
    name: str = ""
    why: str = ""
    tried: str | None = None

    def __str__(self) -> str:
        """Say it in one line."""
        place = f" at {self.where}" if self.where else ""
        return f"{self.code} {self.name or 'finding'}{place}: {self.message}"


class Evidence(Mapping[str, Any]):
    """Readings by key, ``"<stage>/<what>"``, in plain values; and why a reading is missing.

    >>> evidence = Evidence({"inputs/std": 96.0})
    >>> evidence.skip("loss/initial", "the step returned no loss")
    >>> evidence["inputs/std"], evidence.why_missing("loss/initial")
    (96.0, 'the step returned no loss')
    """

    def __init__(self, readings: Mapping[str, Any] | None = None) -> None:
        self._readings: dict[str, Any] = dict(readings or {})
        self._skipped: dict[str, str] = {}

    def __getitem__(self, key: str) -> Any:
        return self._readings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readings)

    def __len__(self) -> int:
        return len(self._readings)

    def add(self, readings: Mapping[str, Any]) -> None:
        """Take in further readings."""
        self._readings.update(readings)

    def skip(self, key: str, reason: str) -> None:
        """Say why the reading ``key``, or all that begin with ``key`` if it ends in "/", could not be taken."""
        self._skipped.setdefault(key, reason)

    def why_missing(self, key: str) -> str:
        """Return the reason given for a missing reading."""
        prefixes = [known for known in self._skipped if known == key or (known.endswith("/") and key.startswith(known))]
        return self._skipped[max(prefixes, key=len)] if prefixes else f"nothing measured {key}"


class Check(ABC):
    """A pure rule from evidence to findings, with a code of its own.

    A subclass sets ``code`` ("FL302"), ``name`` (of the fault, "softmax_twice"), ``title`` (what is asked of a healthy
    set-up, a few words), ``needs`` (readings without which it is skipped) and ``rank``, and writes :meth:`find`. Its
    docstring is what ``firstlight explain`` prints: the rule, its evidence and its known false alarms.

    ``rank`` orders findings of one severity by how near to the root of a trouble they are: a fault that explains
    others has a lower one.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    rank: ClassVar[int]
    why: ClassVar[str] = ""

    @abstractmethod
    def find(self, evidence: Evidence) -> Iterable[Finding]:
        """Yield findings; all of ``needs`` are there."""

    def __call__(self, evidence: Evidence) -> list[Finding]:
        """Return the findings.

        Raises:
            KeyError: a reading among ``needs`` is missing; ask :meth:`missing` first.
        """
        return list(self.find(evidence))

    def missing(self, evidence: Evidence) -> str | None:
        """Return why the check cannot be made, or ``None`` if it can."""
        lacking = next((key for key in self.needs if key not in evidence), None)
        return None if lacking is None else evidence.why_missing(lacking)

    def finding(
        self,
        severity: Severity,
        *,
        value: float | str | None,
        threshold: float | str | None,
        message: str,
        advice: str,
        where: str = "",
    ) -> Finding:
        """Return a finding of this check."""
        require(bool(message) and bool(advice), "message and advice", (message, advice), "given")
        return Finding(self.code, severity, where, value, threshold, message, advice, name=self.name, why=self.why)

    def about(self, names: Sequence[str], *, message: str, advice: str, where: str = "") -> Finding:
        """Return an error about parameters or modules of which there should be none."""
        return self.finding(
            Severity.ERROR,
            value=float(len(names)),
            threshold=0.0,
            where=where or names[0],
            message=message,
            advice=advice,
        )
