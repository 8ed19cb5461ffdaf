"""Runs of the project in processes of their own, and what is known about one afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from faults.project import CONFIG, STEPS

EQUAL = "equal to the unbroken run, bit for bit"
TESTS = Path(__file__).parents[1]


class Server:
    """The process that forks runs; one at a time."""

    def __init__(self, module: str = "faults.project", *places: Path) -> None:
        path = os.pathsep.join(map(str, [TESTS, TESTS.parent / "plugins", *places]))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(TESTS / "faults" / "serve.py"), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        )

    def ask(self, **asked: Any) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self.answer()["pid"])

    def answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        answered: dict[str, int] = json.loads(self._process.stdout.readline())
        return answered

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@dataclass
class Run:
    """One folder in which attempts of one run are made."""

    server: Server
    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.root / "configs").mkdir(parents=True, exist_ok=True)
        (self.root / "configs" / "default.yaml").write_text(CONFIG)

    @contextmanager
    def attempt(self, *args: str, largest_file: int = 0) -> Iterator[Attempt]:
        """Start an attempt; it is waited for at the end of the block."""
        for name in ("output.txt", "steps.txt"):
            (self.root / name).unlink(missing_ok=True)
        asked = {"args": ["fit", *args], "folder": str(self.root), "environment": self.environment}
        attempt = Attempt(self, self.server.ask(**asked, largest_file=largest_file))
        try:
            yield attempt
        finally:
            attempt.code = self.server.answer()["code"]
            attempt.keep()

    def fit(self, *args: str, **kwargs: Any) -> Attempt:
        with self.attempt(*args, **kwargs) as attempt:
            pass
        return attempt

    @property
    def folder(self) -> Path:
        """The newest run folder; an attempt that was killed before its first checkpoint has one of its own."""
        return max((self.root / "runs" / "tiny").iterdir())

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def parts(self) -> list[Path]:
        """What lies there of checkpoints that are being written, or were."""
        return list(self.checkpoints.glob(".*.part"))


@dataclass
class Attempt:
    run: Run
    pid: int
    code: int | None = None
    _kept: tuple[str, list[int]] | None = None

    def keep(self) -> None:
        """Keep what it said and did: the next attempt writes into the same files."""
        self._kept = self.output, self.steps

    @property
    def output(self) -> str:
        return self._kept[0] if self._kept else (self.run.root / "output.txt").read_text()

    @property
    def steps(self) -> list[int]:
        if self._kept:
            return self._kept[1]
        path = self.run.root / "steps.txt"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    @property
    def resumed_from(self) -> int:
        """The step that it said it goes on from; 0 if it said that it starts anew."""
        found = re.search(r"^resume: .*\(step (\d+)\), in the same run folder$", self.output, re.MULTILINE)
        if found is None:
            assert "resume: no checkpoint" in self.output, self.output
            return 0
        return int(found[1])

    def wait_for(self, what: Any, seconds: float = 60) -> None:
        """Wait until ``what()`` is true."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.output
            assert Path(f"/proc/{self.pid}").exists(), self.output
            time.sleep(0.0005)


def trained(checkpoint: Path) -> dict[str, Any]:
    """Return what must be equal: weights, buffers, optimizer, learning rate, step."""
    content = torch.load(checkpoint, weights_only=True)
    return {key: content[key] for key in ("state_dict", "optimizer_states", "global_step", "epoch")}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def finish(run: Run, unbroken: dict[str, Any], *args: str) -> Attempt:
    """Go on to the end, which must be that of the unbroken run; nothing that a killed process left may stay."""
    done = run.fit("--resume=auto", *args)
    assert done.code == 0, done.output
    assert done.steps == list(range(done.resumed_from + 1, STEPS + 1))
    assert not run.parts()
    assert equal(trained(run.checkpoints / "last.ckpt"), unbroken)
    return done
