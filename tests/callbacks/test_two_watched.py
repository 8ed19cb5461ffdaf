"""HealthMonitor in two gloo processes, under DDP and FSDP2: ranks agree, and a fault of one is named with its rank."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
OF_RANK_ONE = "the loss of rank 1 is not finite at step 5; {} is the first to show it"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "plugins")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "two_watched.py"), str(folder)]
    settings = {"capture_output": True, "text": True, "timeout": 180, "check": False, "cwd": folder}
    done = subprocess.run(command, env=environment, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("run", "where"), [("nan", "net.0"), ("shards", "the loss")])
def test_a_bad_batch_of_one_rank_is_named_with_it_and_told_by_rank_zero(run, where, ranks):
    first, second = (rank[run] for rank in ranks)
    assert first["findings"] == second["findings"] == [["FL611", where, 5.0, OF_RANK_ONE.format(where)]]
    assert ["FL611" in text for text in first["told"]] == [True]
    assert second["told"] == []


def test_what_cannot_be_had_of_shards_is_said_in_one_line(ranks):
    (line,) = ranks[0]["shards"]["aside"]
    assert line == "HealthMonitor watches losses only under ModelParallelStrategy: layers are shards"
    assert ranks[0]["nan"]["aside"] == ranks[1]["shards"]["aside"] == []


def test_where_the_run_ends_at_once_the_rank_itself_tells(ranks):
    first, second = (rank["stopped"] for rank in ranks)
    assert "step 5" in first["ended"]
    assert first["findings"] == first["told"] == []
    assert [found[1:] for found in second["findings"]] == [["net.0", 5.0, OF_RANK_ONE.format("net.0")]]
    (told,) = second["told"]
    assert OF_RANK_ONE.format("net.0") in told


def test_a_clean_run_is_the_run_without_it_with_one_more_collective_a_report(ranks):
    for rank in ranks:
        clean, bare = rank["clean"], rank["bare"]
        assert (clean["findings"], clean["told"]) == ([], [])
        assert (clean["weights"], clean["own losses"]) == (bare["weights"], bare["own losses"])
        # after 1, 2, 50 and 100 steps of 120, and at the end
        assert clean["collectives"] == bare["collectives"] | {"allgather": bare["collectives"]["allgather"] + 5}


def test_losses_are_means_over_ranks(ranks):
    first, second = (rank["clean"] for rank in ranks)
    means = [(a + b) / 2 for a, b in zip(first["own losses"], second["own losses"], strict=True)]
    assert len(means) == 120
    assert not math.isclose(first["own losses"][0], second["own losses"][0])
    assert first["losses"] == second["losses"] == pytest.approx(means, rel=1e-12)


def test_a_sick_run_and_what_is_resumed_of_it_say_the_same_on_both_ranks(ranks):
    first, second = (rank["sick"] for rank in ranks)
    assert {found[0] for found in first["findings"]} == {"FL507", "FL612", "FL613", "FL615"}
    assert first["findings"] == second["findings"]
    assert len(first["told"]) == 4
    assert second["told"] == []
    for rank in ranks:
        assert rank["resumed"]["findings"] == rank["sick"]["findings"]
        assert rank["resumed"]["losses"] == rank["sick"]["losses"]
        assert rank["resumed"]["told"] == [t for t in rank["sick"]["told"] if int(t.split(": ")[0].split()[1]) > 133]
