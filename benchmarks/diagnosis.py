"""Does the preflight find what is wrong with a training, and is it silent where nothing is?

``make bench-diagnosis`` runs it on the forty programs of ``tests/benchmark``, from seeds that were not looked at while
the checks were built, beside other tools and the published rules of two more. It prints one line a run, then the
tables; ``--write`` keeps every outcome in ``benchmarks/diagnosis.jsonl`` and puts the tables into
``docs/reference/diagnosis-benchmark.md``. The whole takes about an hour of CPU time; after a change of ours
``--parts preflight,stress`` measures a few minutes, and the rest of the tables comes from the file.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _diagnosis_rivals import PROBES, RIVALS, WATCHERS, Said, applies
from _diagnosis_tables import STRESS, Outcomes, Record, alarms, wrong
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything
from torch.utils.data import DataLoader

from benchmark import CASES, Case
from benchmark.run import fit
from firstlight.checks import Finding, Severity
from firstlight.preflight import repaired, run_preflight
from helpers import trainer

RECORDS = Path(__file__).with_suffix(".jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "diagnosis-benchmark.md"
MARKS = ("<!-- written by benchmarks/diagnosis.py -->", "<!-- end -->")
SEEDS = (11, 12, 13)


@dataclass(frozen=True)
class Task:
    """One run of one program; ``stress`` is a key of ``STRESS``."""

    part: str
    case: Case
    buggy: bool
    seed: int
    stress: str = ""

    @property
    def key(self) -> Record:
        key = {"part": self.part, "case": self.case.id, "buggy": self.buggy, "seed": self.seed, "stress": self.stress}
        return {name: value for name, value in key.items() if value != ""}


# ------------------------------------------------------------------------------------------------------------- runs


def preflight(task: Task) -> Record:
    """Run the preflight; where the program has its fault, train the whole of it with the advice followed."""
    module, data, kwargs = task.case.build(task.buggy, task.seed, **STRESS.get(task.stress, {}))
    began = time.process_time()
    report = run_preflight(module, data, trainer=trainer(**kwargs), seed=task.seed)
    record: Record = {"seconds": round(time.process_time() - began, 2)}
    for severity in (Severity.ERROR, Severity.WARNING):
        named = [finding.name for finding in report.findings if finding.severity == severity]
        record[f"{severity}s"] = list(dict.fromkeys(named))  # the root is the first of its severity
    record["root"] = report.root.name if report.root else None
    if report.crashed:
        record["crashed"] = sorted(report.crashed)
    if task.buggy and report.root is not None:
        record["repaired"] = repair(task, report.root, report.readings)
    return record


def repair(task: Task, root: Finding, readings: Mapping[str, Any]) -> float | None:
    """Return the score of the program with the advice of its root followed; None where that needs a human."""
    module, data, kwargs = task.case.build(task.buggy, task.seed)
    cure = DATA_CURES.get(root.name)
    changed: LightningModule | None
    if cure is not None:
        changed, data = module, cure(data)
    else:
        changed = repaired(module, root, readings)
    if changed is None:
        return None
    seed_everything(task.seed, verbose=False)
    run = trainer(**kwargs)
    try:
        run.fit(changed, data)
    except Exception:  # the advice does not fit the program
        return None
    return finite(run.callback_metrics[task.case.metric])


def shuffled(data: LightningDataModule) -> LightningDataModule:
    """Follow the advice on sorted batches, which is about the loader: pass shuffle=True to it."""
    given = data.train_dataloader

    def train_dataloader() -> DataLoader[Any]:
        loader = given()
        return DataLoader(loader.dataset, batch_size=loader.batch_size, shuffle=True, collate_fn=loader.collate_fn)

    data.train_dataloader = train_dataloader  # type: ignore[method-assign]
    return data


DATA_CURES: dict[str, Callable[[LightningDataModule], LightningDataModule]] = {"sorted_order": shuffled}


def training(task: Task) -> Record:
    """Train the program to its end; the rivals that watch look on."""
    watchers = {
        name: watcher(task.case)
        for name, watcher in WATCHERS.items()
        if RIVALS[name].installed and applies(name, task.case)
    }
    run = fit(task.case, buggy=task.buggy, seed=task.seed, callbacks=list(watchers.values()))
    said = {name: watcher.said.record() for name, watcher in watchers.items()}
    return {"score": finite(run.callback_metrics[task.case.metric]), "rivals": said}


def probe(task: Task) -> Record:
    """Run a rival that makes its own program of the case."""
    said: Said = PROBES[task.part](task.case, buggy=task.buggy, seed=task.seed)
    return {"rivals": {task.part: said.record()}}


def finite(value: Any) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


PARTS: dict[str, Callable[[Task], Record]] = {
    "preflight": preflight,
    "stress": preflight,
    "training": training,
    **dict.fromkeys(PROBES, probe),
}


def tasks(parts: Iterable[str], cases: Iterable[str], seeds: Iterable[int]) -> Iterator[Task]:
    for part in parts:
        for case in (CASES[name] for name in cases):
            if part in PROBES and not (RIVALS[part].installed and applies(part, case)):
                continue
            for seed in seeds:
                if part == "stress":
                    yield from (Task(part, case, False, seed, stress) for stress in STRESS if case.healthy)
                else:
                    yield from (Task(part, case, buggy, seed) for buggy in case.variants)


def run(task: Task) -> Record:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return task.key | PARTS[task.part](task)


def run_named(name: tuple[str, str, bool, int, str]) -> Record:
    """Run a task that is named by plain values: a case does not travel between processes."""
    part, case, buggy, seed, stress = name
    return run(Task(part, CASES[case], buggy, seed, stress))


def prepare() -> None:
    """Make a process one of one thread, that does not speak: what it found is told by the first process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # of the libraries under a rival too
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def line(record: Record) -> str:
    """Return the outcome of one run in one line."""
    case = CASES[record["case"]]
    program = "faulty" if record["buggy"] else "healthy" if case.healthy else "twin"
    start = f"{record['part']:20s} {case.id} {record['seed']} {program:7s} {record.get('stress', ''):9s}"
    if "seconds" in record:
        mark = "x" if wrong(record) else "ok"
        rest = [name for name in record["errors"] + record["warnings"] if name != record["root"]]
        crashed = f" CRASHED {', '.join(record['crashed'])}" if "crashed" in record else ""
        return f"{start} {record['seconds']:5.2f} s {mark:2s} {record['root'] or 'silent'} {' '.join(rest)}{crashed}"
    said = "; ".join(f"{name}: {', '.join(alarms(each)) or '-'}" for name, each in record["rivals"].items())
    return f"{start} {said}" + (f"; score {record['score']}" if "score" in record else "")


# ------------------------------------------------------------------------------------------------------------- files


def key_of(record: Record) -> tuple[Any, ...]:
    return tuple(record.get(name, "") for name in ("part", "case", "buggy", "seed", "stress"))


def read_records() -> list[Record]:
    return [json.loads(text) for text in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.exists() else []


def write(records: list[Record], *, command: str) -> None:
    """Replace the recorded outcomes by the new ones where there are any, and the tables of the page."""
    order = {name: number for number, name in enumerate(PARTS)}
    kept = {key_of(record): record for record in [*read_records(), *records]}
    merged = sorted(kept.values(), key=lambda r: (order[r["part"]], *key_of(r)[1:]))
    RECORDS.write_text("".join(json.dumps(record) + "\n" for record in merged), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    page = Outcomes(merged).page(command=command)
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{page}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--cases", default=",".join(CASES), help="default: all")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--write", action="store_true", help="keep the outcomes, and put the tables into the page")
    options = parser.parse_args(argv)
    todo = list(
        tasks(
            [part for part in options.parts.split(",") if part],
            options.cases.split(","),
            [int(seed) for seed in options.seeds.split(",")],
        )
    )
    named = [(task.part, task.case.id, task.buggy, task.seed, task.stress) for task in todo]
    records = []
    with multiprocessing.get_context("spawn").Pool(options.jobs, prepare) as pool:
        for record in pool.imap(run_named, named):
            records.append(record)
            print(line(record), flush=True)
    if options.write:
        write(records, command="make bench-diagnosis")
        records = read_records()
    outcomes = Outcomes(records)
    print("\n".join(["", outcomes.totals(), "", outcomes.more(), "", outcomes.faults(), "", outcomes.healthy()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
