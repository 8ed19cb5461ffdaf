import math

import pytest
from lightning.pytorch.loggers import CSVLogger

from firstlight.tracking import read_metrics


def test_what_lightning_wrote_comes_back(tmp_path, fit):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = fit(logger, epochs=2)
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics == read_metrics(tmp_path)
    assert metrics["train/loss"][0] == [1, 3, 5, 7, 9, 11]
    assert metrics["val/loss"][0] == [5, 11]
    assert metrics["val/loss"][1][-1] == pytest.approx(trainer.callback_metrics["val/loss"].item(), rel=1e-6)
    assert metrics["epoch"][1][-1] == 1.0
    assert "step" not in metrics


def test_gaps_and_odd_cells(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b,step\n1.5,,0\n,nan,1\nx,inf,2\n2.5,1,\n3.5\n")
    metrics = read_metrics(tmp_path)
    assert metrics["a"] == ([0], [1.5])
    assert metrics["b"][0] == [1, 2]
    assert math.isnan(metrics["b"][1][0])
    assert metrics["b"][1][1] == math.inf


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metrics at .*metrics\.csv"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no 'step' column"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_text("")
    with pytest.raises(ValueError, match="has no 'step' column"):
        read_metrics(tmp_path)
