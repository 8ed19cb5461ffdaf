"""What a verified checkpoint costs beside Lightning's own: saves of one state in turn, medians of the pairs' ratios.

``TMPDIR`` is put beside the checkpoint, as is best for Lightning: elsewhere its last move is a copy. Lightning does
not sync; so that both can be compared with and without, it is also measured with the two ``fsync`` that ours does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from firstlight.recovery import VerifiedCheckpointIO


class SyncedTorchCheckpointIO(TorchCheckpointIO):
    """Lightning's save, and then file and folder on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        for place in (path, os.path.dirname(path)):  # noqa: PTH120  as Lightning gives it
            descriptor = os.open(place, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


LINES = {
    "Lightning": TorchCheckpointIO(),
    "VerifiedCheckpointIO(fsync=False)": VerifiedCheckpointIO(fsync=False),
    "Lightning, synced": SyncedTorchCheckpointIO(),
    "VerifiedCheckpointIO()": VerifiedCheckpointIO(),
    "VerifiedCheckpointIO(read_back=True)": VerifiedCheckpointIO(read_back=True),
}


def state(megabytes: int) -> dict[str, Any]:
    """Return weights and Adam's two moments: a third each."""
    size = megabytes * 1_000_000 // (4 * 3 * 20)
    weights = {f"layer.{number}": torch.randn(size) for number in range(20)}
    moments = {n: {"exp_avg": torch.randn(size), "exp_avg_sq": torch.randn(size)} for n in range(20)}
    return {"state_dict": weights, "optimizer_states": [{"state": moments}], "loops": {}, "global_step": 1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", help="on the disk to measure (default: the system's temporary folder)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = state(asked.megabytes)
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        for _ in range(asked.rounds):
            for name, io in LINES.items():
                os.sync()  # what the one before left to the disk is not this one's
                start = time.perf_counter()
                io.save_checkpoint(checkpoint, str(Path(folder) / "last.ckpt"))
                seconds[name].append(time.perf_counter() - start)
        tempfile.tempdir = None
    print(
        "| saves 500 MB | median seconds | of Lightning's | of Lightning's, synced |".replace(
            "500", str(asked.megabytes)
        )
    )
    print("|---|---|---|---|")
    for name, taken in seconds.items():
        ratios = [ratio(taken, seconds[other]) for other in ("Lightning", "Lightning, synced")]
        print(f"| `{name}` | {statistics.median(taken):.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over the rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
