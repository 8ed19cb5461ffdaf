"""A process that behaves as a trial does, without the seconds that torch takes to import.

It does what its last argument ``--do=`` says: reports a value, or fails in one of the ways of real trials.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from firstlight.cli._tune_store import running_trial


def main() -> None:
    told = json.loads(os.environ["FIRSTLIGHT_TRIAL"])
    words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:] if "=" in word)
    what = words.get("do", "0.5")
    if what == "crash":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if what == "interrupt":
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(300)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "refused":
        sys.stderr.write("error: model.width: must be a multiple of heads\n  raised in model.py:3\n")
        raise SystemExit(2)
    trial = running_trial(**told["trial"])
    run = Path(words["runs"]) / f"run-{trial.study.study_name}-{trial.number}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps({"do": what, "seed_everything": words.get("seed_everything")}))
    trial.set_user_attr("run", str(run))
    noise = 0.01 * int(words.get("seed_everything", 0))
    for step, value in enumerate((1.0, float(what) + noise, 2.0), start=1):
        trial.report(value, step)
    print("done")


if __name__ == "__main__":
    main()
