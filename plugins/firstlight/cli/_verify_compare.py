"""Two trainings held against each other, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from firstlight._require import some

# In the order in which one follows from the other within a batch.
KINDS = (
    *("samples", "losses", "buffers", "weights", "optimizers", "schedules"),
    *("callbacks", "logged values", "random numbers", "checkpoints"),
)
# May hold a clock or a speed: what differs without a stop says nothing about one.
_MAY_HOLD_CLOCKS = ("callbacks", "logged values", "checkpoints")
_ABSENT = "nothing"

Rank = dict[str, Any]
Names = frozenset[tuple[str, str]]  # kind and name of a value


@dataclass(frozen=True)
class Difference:
    """Where values of one kind begin to differ, and which they are."""

    kind: str
    step: int
    epoch: int
    names: list[str]
    values: tuple[str, str]

    @property
    def where(self) -> str:
        return f"step {self.step} (epoch {self.epoch})"

    def __str__(self) -> str:
        then, now = self.values
        told = "" if self.kind == "samples" else f": {some(self.names)}"
        short = len(self.names) == 1 and max(len(then), len(now)) < 12
        return f"{told}{f' ({then}, then {now})' if short else ''}"


def differences(
    whole: list[Rank], other: list[Rank], *, after: str = "", leave: Names = frozenset()
) -> list[Difference]:
    """Return where ``other`` begins to differ from the part of ``whole`` that follows the place ``after``."""
    found: dict[str, Difference] = {}
    for number, (expected, got) in enumerate(zip(whole, other, strict=True)):
        prefix = f"rank {number}: " if len(whole) > 1 else ""
        for then, now in zip(_following(expected["records"], after), got["records"], strict=False):
            if then["place"] != now["place"]:
                _keep(found, then, "samples", ["place"], prefix, (f"batch {then['place']}", f"batch {now['place']}"))
                break
            for kind in KINDS:
                one, two = then["values"].get(kind), now["values"].get(kind)
                if one is None or two is None:
                    continue
                names = [name for name in _unequal(one, two) if (kind, name) not in leave]
                if names:
                    values = one.get(names[0], _ABSENT), two.get(names[0], _ABSENT)
                    _keep(found, then, kind, names, prefix, values)
    return sorted(found.values(), key=lambda one: (one.step, KINDS.index(one.kind)))


def _keep(
    found: dict[str, Difference], record: dict[str, Any], kind: str, names: list[str], prefix: str, values: Any
) -> None:
    if kind not in found or record["step"] < found[kind].step:
        epoch = int(record["place"].partition(":")[0])
        found[kind] = Difference(kind, record["step"], epoch, [f"{prefix}{name}" for name in names], values)


def _following(records: list[dict[str, Any]], after: str) -> list[dict[str, Any]]:
    places = [record["place"] for record in records]
    return records[places.index(after) + 1 :] if after else records


def _unequal(one: dict[str, str], two: dict[str, str]) -> list[str]:
    return [name for name in {**one, **two} if one.get(name) != two.get(name)]


def clocks(whole: list[Rank], other: list[Rank]) -> Names:
    """Return the values that two trainings without a stop differ in, of kinds that may hold a clock."""
    return frozenset(_clocks(whole, other))


def _clocks(whole: list[Rank], other: list[Rank]) -> Iterator[tuple[str, str]]:
    for expected, got in zip(whole, other, strict=True):
        for then, now in zip(expected["records"], got["records"], strict=False):
            for kind in _MAY_HOLD_CLOCKS:
                one, two = then["values"].get(kind), now["values"].get(kind)
                if one is not None and two is not None:
                    yield from ((kind, name) for name in _unequal(one, two))
