"""Trains every program of the diagnosis benchmark, with its fault and without, from three seeds.

``PYTHONPATH=plugins:tests python benchmarks/diagnosis_cases.py`` prints one table and writes what it measured beside
the programs, where the tests of the diagnosis find what a repaired program can reach. It takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from statistics import fmean

import torch

from benchmark import CASES, Case
from benchmark.run import SCORES, score

HEADER = ("case", "program", "metric", "buggy", "fixed", "plain torch")


def measure(case: Case, seeds: int) -> dict[str, list[float | None]]:
    """Return the scores of each variant; None for what is not a number, which JSON cannot hold."""
    scores = {}
    for buggy in case.variants:
        values = [score(case, buggy=buggy, seed=seed) for seed in range(seeds)]
        scores["buggy" if buggy else "fixed"] = [round(value, 4) if math.isfinite(value) else None for value in values]
    return scores


def row(case: Case, scores: dict[str, list[float | None]]) -> str:
    reference = {tuple: "{0[0]:g} → {0[1]:g}", float: "{0:g}", type(None): "falls"}[type(case.reference)]
    cells = (
        case.id,
        case.title,
        f"{case.metric} ({case.direction})",
        shown(scores.get("buggy")),
        shown(scores["fixed"]),
        reference.format(case.reference),
    )
    return "| " + " | ".join(cells) + " |"


def shown(values: list[float | None] | None) -> str:
    """Return mean and range, or what there is of them."""
    if values is None:
        return ""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "NaN"
    text = f"{fmean(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"
    return text if len(numbers) == len(values) else f"{text}, {len(values) - len(numbers)} NaN"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--write", action=argparse.BooleanOptionalAction, default=True, help="replace the recorded scores"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    scores = {}
    for case in CASES.values():
        scores[case.id] = measure(case, args.seeds)
        print(row(case, scores[case.id]), flush=True)
    if args.write:
        lines = (f'  "{name}": {json.dumps(values)}' for name, values in scores.items())
        SCORES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
