"""Starts runs of the module that is named by forking, so that a hundred of them import torch once.

A line of JSON asks, lines of JSON answer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

import matplotlib.pyplot  # noqa: F401  each run draws its picture


def run(main: Callable[[list[str]], Any], asked: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if asked["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"], asked["largest_file"]))
    code: Any = 0
    try:
        main(asked["args"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def serve() -> None:
    main = import_module(sys.argv[1]).main
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            run(main, json.loads(line))
        _answer(pid=pid)
        _, status = os.waitpid(pid, 0)
        _answer(code=os.waitstatus_to_exitcode(status))


def _answer(**values: int) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
