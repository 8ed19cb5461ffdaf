"""A worker that claims trials as fast as it can: ``study.log number-of-trials``, from the first line of input on."""

from __future__ import annotations

import sys
import time

from optuna.trial import TrialState

from firstlight.cli._tune_store import Store, quiet_optuna


def main() -> None:
    where, num_trials = sys.argv[1], int(sys.argv[2])
    with quiet_optuna():
        store = Store.opened("study", where, "min")
        print("ready", flush=True)
        sys.stdin.readline()
        while claimed := store.claim(num_trials):
            trial, index = claimed
            print(index, flush=True)
            time.sleep(0.005)
            store.study.tell(trial, state=TrialState.FAIL)


if __name__ == "__main__":
    main()
