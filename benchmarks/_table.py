"""What the benchmarks share: runs in turn, one line of the table per comparison, and the table as markdown."""

from __future__ import annotations

import importlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    what: str
    against: str
    ours: str
    theirs: str
    ratio: float | None
    target: str
    met: bool | None

    @property
    def cells(self) -> tuple[str, ...]:
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        verdict = {True: "yes", False: "**no**", None: ""}[self.met]
        return self.what, self.against, self.ours, self.theirs, ratio, self.target, verdict


class Skip(Exception):  # noqa: N818
    """A row whose part or peer is missing."""


def clock() -> Callable[[], float]:
    """Return CPU time for one thread, which other work on the machine disturbs least, and wall time for more."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def pairs(ours: Call, theirs: Call, *, number: int, warmup: int = 1) -> tuple[float, float, float]:
    """Return the median seconds of each and the median ratio, over runs in turn."""
    now = clock()
    times: list[tuple[float, float]] = []
    for turn in range(warmup + number):
        first = now()
        ours()
        second = now()
        theirs()
        third = now()
        if turn >= warmup:
            times.append((second - first, third - second))
    mine, other = zip(*times, strict=True)
    return statistics.median(mine), statistics.median(other), statistics.median(a / b for a, b in times)


def compared(what: str, against: str, mine: float, other: float, ratio: float, *, most: float | None) -> Result:
    """Return the line of two times, with its verdict if there is a target."""
    target, met = ("", None) if most is None else (f"≤ {most:.3g}", ratio <= most)
    return Result(what, against, seconds(mine), seconds(other), ratio, target, met)


def timed(what: str, against: str, ours: Call, theirs: Call, *, number: int, most: float | None) -> Result:
    return compared(what, against, *pairs(ours, theirs, number=number), most=most)


def seconds(value: float) -> str:
    if abs(value) >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.3g} ms" if abs(value) >= 1e-4 else f"{value * 1e6:.3g} µs"


def part(room: str, name: str) -> Any:
    """Return one of our parts, or skip the row."""
    try:
        return getattr(importlib.import_module(f"firstlight.{room}"), name)
    except (ImportError, AttributeError) as error:
        raise Skip(f"firstlight.{room}.{name} is not there yet") from error


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(results: list[Result]) -> str:
    head = ("part", "against", "ours", "theirs", "ratio", "target", "met")
    rows = [head, *(result.cells for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def report(rows: Mapping[str, Callable[[], Iterator[Result]]], only: str) -> None:
    """Run the rows that have ``only`` in their name, and print the table."""
    results: list[Result] = []
    skipped: list[str] = []
    started = time.perf_counter()
    for name, measure in rows.items():
        if only not in name:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            results.extend(measure())
        except Skip as reason:
            skipped.append(f"skipped: {name}: {reason}")
    threads = torch.get_num_threads()
    kind = "CPU time" if threads == 1 else "wall time"
    print(f"torch {torch.__version__}, {processor()}, {threads} thread(s), {kind}\n")
    print("\n".join([table(results), *skipped]))
    print(f"\n{time.perf_counter() - started:.0f} s in all", file=sys.stderr)
