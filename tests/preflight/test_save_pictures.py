from __future__ import annotations

import logging
import sys

import matplotlib.image
import pytest
from preflight.reports import broken, clean, report


def test_there_is_a_file_a_picture(tmp_path):
    saved = broken().save_pictures(tmp_path / "deep" / "folder")
    assert [path.name for path in saved] == ["overfit.png", "schedule.png", "inputs.png", "layers.png"]
    assert all(matplotlib.image.imread(path).std() > 0.01 for path in saved)


def test_without_pictures_there_is_no_file(tmp_path):
    assert clean().save_pictures(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "pictures",
    [
        {"inputs": {"kind": "numbers", "histogram": {"edges": [0.0, 1.0], "counts": [3]}}},
        {"inputs": {"kind": "images", "images": [[[[0.0, 0.5, 1.0]]]], "labels": ["1"]}},
        {"layers": {"names": ["a"], "gradient": [0.0]}},
        {"schedule": {"steps": [0, 1], "rates": {"a": [0.0, 1.0]}}},
    ],
    ids=str,
)
def test_parts_of_pictures_are_drawn(tmp_path, pictures):
    assert len(report(pictures=pictures).save_pictures(tmp_path)) == 1


def test_tokens_are_no_picture(tmp_path):
    assert report(pictures={"inputs": {"kind": "tokens", "tokens": [[1]]}}).save_pictures(tmp_path) == []


def test_without_matplotlib_it_is_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, logger.name):
        assert broken().save_pictures(tmp_path) == []
    assert [record.getMessage() for record in caplog.records] == [
        "no pictures of the preflight: matplotlib is not installed; pip install 'firstlight[viz]'"
    ]
