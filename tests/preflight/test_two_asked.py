"""Preflight in two gloo processes: rank 0 asks, rank 1 waits; both go on as without it, or both end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstlight.preflight import PreflightReport

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("asked")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "plugins")])
    there = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    there |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(TESTS / "two_asked.py"), str(folder)]
    settings: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    ranks = [subprocess.Popen(command, env={**os.environ, **there, "LOCAL_RANK": rank}, **settings) for rank in "01"]
    try:
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert (folder / "rank1.json").is_file(), said
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return folder, found, said, [rank.returncode for rank in ranks]


@pytest.mark.parametrize("way", ["gather", "torch"])
def test_a_sound_run_is_on_both_ranks_the_run_without_it(way, run):
    """The step gathers over ranks; on copies it gathers over the one that asks."""
    folder, found, *_ = run
    for rank in found:
        asked, bare = rank[f"asked {way}"], rank[f"bare {way}"]
        assert asked["weights"] == bare["weights"]
        assert asked["random"] == bare["random"]
        assert asked["skipped"] is None
    assert [rank[f"asked {way}"]["asked"] for rank in found] == [True, False]
    report = PreflightReport.from_json((folder / f"asked{way}" / "preflight.json").read_text(encoding="utf-8"))
    assert not report.crashed
    assert [f"{found.code} {found.message}" for found in report.findings if found.severity > 10] == []
    assert report.readings["pair/own"] < 0.5, "the step was tried, and learns"


def test_a_verdict_ends_both_with_the_same_words_and_exit(run):
    folder, _, said, exits = run
    assert exits == [1, 1]
    for words in said:
        assert "RuntimeError: Preflight stopped the run: FL302 softmax_twice at the loss" in words
    assert not list(folder.glob("went on*"))


def test_where_it_fails_itself_nobody_is_left_waiting(run):
    _, (first, second), *_ = run
    assert "Preflight" not in first["failed"], "its own error"
    assert second["failed"].startswith("RuntimeError: Preflight failed on rank 0: ")
