"""The tables of the diagnosis benchmark: what counts as right, and how the outcomes are shown."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from _diagnosis_rivals import PROBES, RIVALS
from _table import processor

from benchmark import CASES, Case

Record = dict[str, Any]  # the outcome of one run, as a line of JSON holds it
STRESS = {
    "rate / 2": {"lr_factor": 0.5},
    "rate x 2": {"lr_factor": 2.0},
    "batch / 2": {"batch_factor": 0.5},
    "batch x 2": {"batch_factor": 2.0},
    "width x 2": {"width_factor": 2.0},
}

# ------------------------------------------------------------------------------------------------------- what counts


def wrong(record: Record) -> bool:
    """Whether a preflight did not name the fault first, or named anything where there is none."""
    if record["buggy"]:
        return bool(record["root"] != CASES[record["case"]].finding)
    return bool(alarms(record))


def alarms(said: Record, *, errors_only: bool = False) -> list[str]:
    return said.get("errors", []) + ([] if errors_only else said.get("warnings", []))


def names_cause(rival: str, record: Record) -> bool:
    cause = CASES[record["case"]].finding
    return bool(set(alarms(record["rivals"][rival])) & RIVALS[rival].causes.get(cause, set()))


def restored(record: Record, scores: dict[Any, float | None]) -> bool:
    """Whether the repaired program makes up for 90 % of what the fault cost.

    Every fault has an accuracy or an R²; one below zero, or not a number, counts as zero.
    """
    case, score = CASES[record["case"]], record.get("repaired")
    fixed = scores.get((case.id, False, record["seed"]))
    if score is None or fixed is None:
        return False
    buggy = max(scores.get((case.id, True, record["seed"])) or 0.0, 0.0)
    return bool(score - buggy >= 0.9 * (fixed - buggy))


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, after Wilson (1927)."""
    if not total:
        return math.nan, math.nan
    z, share = statistics.NormalDist().inv_cdf(0.975), hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def shown(hits: Iterable[bool]) -> str:
    """Return a count with its share's interval.

    >>> shown([True, True, True, False])
    '3 of 4 (75 %; 30 to 95 %)'
    """
    outcomes = list(hits)
    if not outcomes:
        return ""
    low, high = wilson(sum(outcomes), len(outcomes))
    share = sum(outcomes) / len(outcomes)
    return f"{sum(outcomes)} of {len(outcomes)} ({100 * share:.0f} %; {100 * low:.0f} to {100 * high:.0f} %)"


# ----------------------------------------------------------------------------------------------------------- tables


class Outcomes:
    """All records, and the questions that the tables ask of them."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.scores = {(r["case"], r["buggy"], r["seed"]): r["score"] for r in self.records if "score" in r}

    def of(self, part: str, case: str | None = None, *, buggy: bool | None = None) -> list[Record]:
        return [
            r for r in self.records if r["part"] == part and case in (None, r["case"]) and buggy in (None, r["buggy"])
        ]

    def rival(self, name: str, case: str | None = None, *, buggy: bool | None = None) -> list[Record]:
        part = name if name in PROBES else "training"
        return [r for r in self.of(part, case, buggy=buggy) if name in r["rivals"]]

    @property
    def rivals(self) -> list[str]:
        return [name for name in RIVALS if self.rival(name)]

    def totals(self) -> str:
        head = ["", "faults: an error", "error or warning", "the cause, first", "the cause, anywhere"]
        head += ["no fault: an error", "error or warning"]
        bad, good = self.of("preflight", buggy=True), self.of("preflight", buggy=False)
        rows = [
            [
                "**firstlight preflight**",
                shown(bool(alarms(r, errors_only=True)) for r in bad),
                shown(bool(alarms(r)) for r in bad),
                shown(not wrong(r) for r in bad),
                shown(CASES[r["case"]].finding in alarms(r) for r in bad),
                shown(bool(alarms(r, errors_only=True)) for r in good),
                shown(bool(alarms(r)) for r in good),
            ]
        ]
        for name in self.rivals:
            bad, good = (self.rival(name, buggy=buggy) for buggy in (True, False))
            rows.append(
                [
                    RIVALS[name].title,
                    shown(bool(alarms(r["rivals"][name], errors_only=True)) for r in bad),
                    shown(bool(alarms(r["rivals"][name])) for r in bad),
                    "",
                    shown(names_cause(name, r) for r in bad),
                    shown(bool(alarms(r["rivals"][name], errors_only=True)) for r in good),
                    shown(bool(alarms(r["rivals"][name])) for r in good),
                ]
            )
        return table(head, rows)

    def more(self) -> str:
        """Return what else is known of the preflight."""
        bad, good = self.of("preflight", buggy=True), self.of("preflight", buggy=False)
        twins, healthy = ([r for r in good if CASES[r["case"]].healthy is each] for each in (False, True))
        stress, seconds = self.of("stress"), [r["seconds"] for r in bad + good]
        rows = [
            ["alarms on fixed twins", shown(bool(alarms(r)) for r in twins)],
            ["alarms on healthy programs", shown(bool(alarms(r)) for r in healthy)],
            *([name, shown(bool(alarms(r)) for r in stress if r["stress"] == name)] for name in STRESS),
            ["runs in which a check itself failed", shown("crashed" in r for r in bad + good + stress)],
            ["faults where the advice, followed, restores the score", shown(restored(r, self.scores) for r in bad)],
            ["faults where a program can follow the advice", shown(r.get("repaired") is not None for r in bad)],
        ]
        if seconds:
            slow = max(bad + good, key=lambda r: r["seconds"])
            told = f"median {statistics.median(seconds):.2f}, most {slow['seconds']:.2f} ({slow['case']})"
            rows.append(["CPU seconds of a preflight", told])
        return table(["firstlight preflight", ""], [row for row in rows if row[1]])

    def faults(self) -> str:
        head = ["case", "fault", "the cause", "said first", "said beside it", "CPU s", "score: faulty, repaired, fixed"]
        head += [f"{RIVALS[name].title}" for name in self.rivals]
        rows = []
        for case in (case for case in CASES.values() if not case.healthy):
            bad, good = (self.of("preflight", case.id, buggy=buggy) for buggy in (True, False))
            if not bad:
                continue
            beside = {name for r in bad for name in alarms(r) if name != r["root"]}
            repaired_scores = [r.get("repaired") for r in bad]
            scores = [
                mean(self.scores.get((case.id, True, r["seed"])) for r in bad),
                mean(repaired_scores) if any(score is not None for score in repaired_scores) else "by hand",
                mean(self.scores.get((case.id, False, r["seed"])) for r in bad),
            ]
            twins = [name for r in good for name in alarms(r)]
            rows.append(
                [
                    case.id,
                    case.title,
                    case.finding,
                    told([r["root"] or "nothing" for r in bad], case.finding)
                    + (f"; twin: **{', '.join(twins)}**" if twins else ""),
                    ", ".join(sorted(beside)),
                    f"{statistics.median(r['seconds'] for r in bad):.2f}",
                    ", ".join(scores) + f" ({sum(restored(r, self.scores) for r in bad)} of {len(bad)})",
                    *(self.cell(name, case) for name in self.rivals),
                ]
            )
        return table(head, rows)

    def healthy(self) -> str:
        head = [
            "case",
            "healthy program",
            "said",
            "under stress",
            "CPU s",
            *(RIVALS[name].title for name in self.rivals),
        ]
        rows = []
        for case in (case for case in CASES.values() if case.healthy):
            runs, stress = self.of("preflight", case.id), self.of("stress", case.id)
            if not runs:
                continue
            rows.append(
                [
                    case.id,
                    case.title,
                    told([" ".join(alarms(r)) or "nothing" for r in runs], "nothing"),
                    told([" ".join(alarms(r)) or "nothing" for r in stress], "nothing"),
                    f"{statistics.median(r['seconds'] for r in runs):.2f}",
                    *(self.cell(name, case) for name in self.rivals),
                ]
            )
        return table(head, rows)

    def cell(self, rival: str, case: Case) -> str:
        """Return in how many runs a rival raised an alarm: with the fault, and without."""
        counts = []
        for buggy in case.variants:
            runs = self.rival(rival, case.id, buggy=buggy)
            if not runs:
                return "–"
            count = f"{sum(bool(alarms(r['rivals'][rival])) for r in runs)}"
            counts.append(f"{count}*" if buggy and any(names_cause(rival, r) for r in runs) else count)
        return " / ".join(counts)

    def page(self, *, command: str) -> str:
        notes = [f"- **{RIVALS[name].title}**: {RIVALS[name].note}." for name in self.rivals]
        notes += [f"- **{rival.title}** was not run." for name, rival in RIVALS.items() if name not in self.rivals]
        seeds = sorted({r["seed"] for r in self.of("preflight")})
        return "\n".join(
            [
                f"Measured on {datetime.date.today()} with `{command}`, seeds {', '.join(map(str, seeds))}: torch "
                f"{torch.__version__}, {processor()}, one thread.\n",
                self.totals() + "\n",
                *notes,
                "\n" + self.more(),
                "\n## Faults\n",
                "Columns of rivals: runs with an alarm (error or warning) on the faulty program / on its fixed twin; "
                "* where one of them names the cause; – where it is not made for such a program.\n",
                self.faults(),
                "\n## Healthy programs\n",
                self.healthy(),
            ]
        )


def told(answers: list[str], right: str) -> str:
    """Return the answers with how often each came; those that are not right stand out."""
    counts = {answer: answers.count(answer) for answer in answers}
    return ", ".join(f"{'' if answer == right else '**wrong:** '}{answer} {n}x" for answer, n in counts.items())


def mean(values: Iterable[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{statistics.fmean(numbers):.2f}" if numbers else "NaN"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
