"""First light in one command: generate a project, check it, train it, test it. ``make demo`` runs this.

``make demo TASK=language`` starts from another task. It types what a user would type and asks nothing. The project
stays in ``demo/first-light``; the one of the run before is kept beside it as ``demo/previous``, older ones are removed.
"""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
PROJECT = DEMO / "first-light"

sys.path.insert(0, str(ROOT / "template"))
from firstlight_template.tasks import TASKS, Task  # noqa: E402


def say(text: str) -> None:
    """Write a line at once, in order with what the commands write."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(title: str, command: list[str], cwd: Path) -> list[str]:
    """Show and run a command; return its lines. A command that fails ends the demo with its exit code."""
    say(f"\n=== {title}\n$ {shlex.join(command)}")
    # A demo uploads nothing, unless WANDB_MODE says otherwise.
    environment = {"WANDB_MODE": "offline", **os.environ, "PYTHONUNBUFFERED": "1"}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    start = time.perf_counter()
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**environment, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip("\n"))
            say(lines[-1])
    if process.returncode:
        say(f"\nerror: '{title}' ended with exit code {process.returncode}")
        sys.exit(process.returncode)
    say(f"({time.perf_counter() - start:.1f} s)")
    return lines


def make_room() -> None:
    """Move the project of the last demo aside; nothing else in ``demo/`` is touched."""
    if PROJECT.exists():
        previous = DEMO / "previous"
        if previous.exists():
            shutil.rmtree(previous)
        PROJECT.rename(previous)
    DEMO.mkdir(exist_ok=True)


def last_value(table: Path, key: str) -> float:
    """Return the last value of a column of a metrics file."""
    with table.open(newline="", encoding="utf-8") as file:
        values = [row[key] for row in csv.DictReader(file) if row.get(key)]
    return float(values[-1])


def line_with(lines: list[str], start: str) -> str:
    """Return the line that begins with ``start``."""
    return next((line for line in lines if line.startswith(start)), f"{start}: no such line")


def summary(task: Task, verdict: str, baseline: str | None, seconds: float) -> int:
    """Say what came out and where it lies; 0 if the model is as good as promised."""
    folder = max((PROJECT / "runs" / PROJECT.name).iterdir())
    value = last_value(folder / "test" / "metrics.csv", task.metric)
    offline = next(iter(sorted((folder / "wandb").glob("*run-*"))), None)
    say(f"\n=== First light, {seconds:.0f} s after the installation\n")
    say(f"  overfit one batch  {verdict.partition(' ')[2]}")
    say(f"  {task.metric:<18} {value:.4f}" + (f"   (to beat: {baseline})" if baseline else ""))
    say(f"  run folder         {folder}")
    say(f"  W&B                {offline or 'not logged'}")
    if offline is not None and offline.name.startswith("offline-"):
        say(f"  upload it with     wandb sync {shlex.quote(str(offline))}")
    say(f"  picture            {folder / 'run.png'}")
    say(f"\n  Look around: cd {shlex.quote(os.path.relpath(PROJECT))}, and read its README.md\n")
    if not task.reached(value, float(baseline.split()[-1]) if baseline else None):
        say(f"error: {task.metric} {value:.4f} is not as good as promised (goal: {task.goal or 'beat the baseline'})")
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Run the steps and return the exit code."""
    name = arguments[0] if arguments else "vision"
    if len(arguments) > 1 or name not in TASKS:
        say(f"error: {shlex.join(arguments)} is no task; there are {', '.join(TASKS)}")
        return 2
    task = TASKS[name]
    make_room()
    start = time.perf_counter()
    run("Generate a project", ["cookiecutter", ".", "--no-input", "-o", "demo", f"task={name}"], ROOT)
    generated = time.perf_counter()
    # What it needs is in this environment already, so nothing is fetched; elsewhere its README's line does it all.
    pip = ["python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run("Install it", [*pip, "--no-deps", "--no-build-isolation", "-e", "."], PROJECT)
    installed = time.perf_counter()
    fit = ["python", "-m", "first_light", "fit"]
    checked = run("Check: can it memorize one batch?", [*fit, "--config", "configs/debug/overfit.yaml"], PROJECT)
    run("Train", fit, PROJECT)
    run("Test the best checkpoint", ["python", "-m", "first_light", "test"], PROJECT)
    baseline = None
    if task.baseline:
        baseline = run("The number to beat", ["python", "-m", "first_light.baseline"], PROJECT)[-1]
    seconds = time.perf_counter() - installed + generated - start
    return summary(task, line_with(checked, "OverfitOneBatch"), baseline, seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
