import shutil
import struct
import zlib

import pytest

from firstlight.tracking import SafeWandbLogger, read_offline_run


@pytest.fixture
def run_dir(tmp_path):
    logger = SafeWandbLogger(save_dir=tmp_path, group="g", job_type="j")
    run = logger.experiment
    run.config.update({"a": {"b": 1}, "long": "x" * 100_000})  # spans several blocks of 32 KiB
    for step in range(400):
        logger.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
    run.alert("title", "text")
    run.summary["best"] = 7
    run.define_metric("val/accuracy", summary="max")
    logger.finish()
    return logger.offline_dir


def wandb_file(run_dir):
    return next(run_dir.glob("*.wandb"))


def test_everything_comes_back(run_dir):
    run = read_offline_run(run_dir)
    assert run.config == {"a": {"b": 1}, "long": "x" * 100_000}
    assert run.series("train/loss") == (list(range(400)), [1.0 / (s + 1) for s in range(400)])
    assert run.summary["best"] == 7
    assert run.summary["train/loss"] == 1.0 / 400
    assert run.metrics["val/accuracy"]["summary"] == ("max",)
    assert [(a["title"], a["text"]) for a in run.alerts] == [("title", "text")]
    assert (run.group, run.job_type, run.exit_code, run.truncated) == ("g", "j", 0, False)
    assert "requirements.txt" in run.files
    assert read_offline_run(wandb_file(run_dir)) == run
    assert read_offline_run(run_dir.parent / "latest-run") == read_offline_run(run_dir.parent / "latest-run")


def test_a_file_cut_anywhere_gives_what_came_before(run_dir):
    file = wandb_file(run_dir)
    data = file.read_bytes()
    rows = len(read_offline_run(file).history)
    seen = []
    for end in (len(data) - 1, len(data) - 9, len(data) * 3 // 4, len(data) // 2, 40_000, 1000):
        file.write_bytes(data[:end])
        run = read_offline_run(file)
        assert run.truncated
        seen.append(len(run.history))
    assert seen == sorted(seen, reverse=True)
    assert rows == seen[0] > seen[3] > seen[-1] == 0
    file.write_bytes(data[: len(data) // 2] + bytes(5000))  # blocks that a crash left empty
    file.write_bytes(data + bytes(5000))
    assert read_offline_run(file).truncated
    assert len(read_offline_run(file).history) == rows


def test_a_flipped_bit_is_found(run_dir):
    file = wandb_file(run_dir)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged at byte \d+: the checksum does not fit"):
        read_offline_run(file)


def test_an_empty_run_has_no_exit_code(tmp_path):
    file = tmp_path / "run-abc.wandb"
    file.write_bytes(b":W&B\xe1\xbe\x00")
    run = read_offline_run(file)
    assert (run.run_id, run.history, run.exit_code, run.truncated) == ("abc", (), None, False)


def test_the_checksum_covers_type_and_payload(tmp_path):
    """Against the format's description, not against our own writer."""
    file = tmp_path / "run-abc.wandb"
    payload = b""
    chunk = struct.pack("<IHB", zlib.crc32(b"\x01" + payload), len(payload), 1) + payload
    file.write_bytes(b":W&B\xe1\xbe\x00" + chunk)
    assert read_offline_run(file).history == ()


def test_what_is_not_a_run_is_refused(tmp_path, run_dir):
    with pytest.raises(FileNotFoundError, match="no W&B run at"):
        read_offline_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no \.wandb file in"):
        read_offline_run(tmp_path)
    (tmp_path / "other.wandb").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ValueError, match="must be a W&B run file"):
        read_offline_run(tmp_path / "other.wandb")
    (tmp_path / "empty.wandb").touch()
    with pytest.raises(ValueError, match="must be a W&B run file"):
        read_offline_run(tmp_path / "empty.wandb")


@pytest.mark.slow
def test_a_killed_run_can_be_read(tmp_path):
    """What is on disk 0 to 15 s after the last row is up to wandb; what is there can be read."""
    logger = SafeWandbLogger(save_dir=tmp_path)
    for step in range(2000):
        logger.log_metrics({"a": float(step)}, step=step)
    copy = tmp_path / "copy"
    shutil.copytree(logger.experiment.settings.sync_dir, copy)
    logger.finish()
    steps, values = read_offline_run(copy).series("a")
    assert values == [float(step) for step in range(len(steps))]
    assert read_offline_run(copy).exit_code is None
