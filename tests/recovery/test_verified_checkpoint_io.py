"""A checkpoint is whole or not there; a damaged one is refused, with the reason and what there is instead."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from firstlight.recovery import (
    CheckpointWriteError,
    DamagedCheckpointError,
    VerifiedCheckpointIO,
    _replace,
    read_checkpoint,
    survey_checkpoints,
    verify_checkpoint,
)
from helpers import fit, loader, network, same, supervised, trainer, weights

TORCH = TorchCheckpointIO()


def state(step: int = 3, size: int = 5000) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "state_dict": {"w": torch.randn(size, generator=generator), "half": torch.randn(7).half()},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}],
        "loops": {},
        "global_step": step,
    }


@pytest.fixture(params=["ours", "torch's"])
def saved(request: Any, tmp_path: Path) -> Path:
    """A checkpoint with a seal, and one without."""
    path = tmp_path / "last.ckpt"
    (VerifiedCheckpointIO() if request.param == "ours" else TORCH).save_checkpoint(state(), path)
    return path


def test_a_sealed_checkpoint_is_an_ordinary_one(tmp_path):
    path, content = tmp_path / "a.ckpt", state()
    VerifiedCheckpointIO().save_checkpoint(content, path)
    for loaded in (
        torch.load(path, weights_only=True),
        torch.load(path, weights_only=True, mmap=True),
        TORCH.load_checkpoint(path),
        VerifiedCheckpointIO().load_checkpoint(path),
        VerifiedCheckpointIO().load_checkpoint(f"file://{path}"),
        read_checkpoint(path),
    ):
        assert same(loaded["state_dict"], content["state_dict"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"firstlight sha256 ")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_seal_is_the_digest_of_what_torch_wrote(tmp_path):
    path = tmp_path / "a.ckpt"
    VerifiedCheckpointIO().save_checkpoint(state(), path)
    whole = path.read_bytes()
    archive, comment = whole[: -len(b"firstlight sha256 ") - 64 - 2] + b"\0\0", whole[-64:]
    shown = subprocess.run(["sha256sum"], input=archive, capture_output=True, check=True).stdout
    assert shown.split()[0] == comment


def test_a_copy_keeps_its_seal(tmp_path, saved):
    copy = tmp_path / "elsewhere" / "copy.ckpt"
    copy.parent.mkdir()
    copy.write_bytes(saved.read_bytes())
    verify_checkpoint(copy)


def test_every_truncation_is_refused(saved):
    whole = saved.read_bytes()
    chance = random.Random(0)
    lengths = {
        0,
        1,
        3,
        4,
        30,
        *(len(whole) - n for n in range(1, 120)),
        *(chance.randrange(len(whole)) for _ in range(50)),
    }
    for length in lengths:
        os.truncate(saved, length)
        with pytest.raises(DamagedCheckpointError, match=r"it is (empty|cut off|zeros|no archive)"):
            verify_checkpoint(saved)
        saved.write_bytes(whole)
    verify_checkpoint(saved)


def test_a_flipped_bit_in_a_tensor_is_refused(saved):
    """``torch.load`` takes it without a word."""
    whole = saved.read_bytes()
    data = state()["state_dict"]["w"].numpy().tobytes()
    start = whole.index(data)
    for offset in (0, len(data) // 2, len(data) - 1):
        changed = bytearray(whole)
        changed[start + offset] ^= 1
        saved.write_bytes(changed)
        assert not same(torch.load(saved, weights_only=True)["state_dict"], state()["state_dict"])
        with pytest.raises(DamagedCheckpointError, match=r"its SHA-256 is not|does not fit its CRC-32"):
            VerifiedCheckpointIO().load_checkpoint(saved)


def test_any_flipped_bit_of_a_sealed_archive_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    VerifiedCheckpointIO().save_checkpoint(state(size=50), path)
    whole = path.read_bytes()
    archive = len(whole) - 64 - len(b"firstlight sha256 ") - 2
    for place in [*range(0, archive, 11), *range(archive - 30, archive + 2)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            verify_checkpoint(path)


@pytest.mark.parametrize("content", [b"", bytes(3000), b"hello" * 500, pickle.dumps({"a": 1})])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"it is (empty|zeros|no archive of torch\.save)"):
        VerifiedCheckpointIO().load_checkpoint(path)
    with pytest.raises(DamagedCheckpointError, match=r"it is (empty|zeros|no archive of torch\.save)"):
        read_checkpoint(path)


def test_a_refusal_names_the_newest_good_one(tmp_path):
    io = VerifiedCheckpointIO()
    for step in (4, 8, 12):
        io.save_checkpoint(state(step), tmp_path / f"{step}.ckpt")
    os.utime(tmp_path / "4.ckpt")  # the newest file
    os.truncate(tmp_path / "12.ckpt", 100)
    with pytest.raises(DamagedCheckpointError, match=r"12\.ckpt is refused: .*newest good one is .*8\.ckpt \(step 8\)"):
        io.load_checkpoint(tmp_path / "12.ckpt")
    found = survey_checkpoints(tmp_path)
    assert (found.newest, found.step) == (tmp_path / "8.ckpt", 8)
    assert list(found.refused) == [tmp_path / "12.ckpt"]
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(tmp_path / "16.ckpt")


def test_objects_are_not_unpickled(tmp_path):
    class Bad:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {}, "x": Bad()}, path)
    with pytest.raises(pickle.UnpicklingError):
        VerifiedCheckpointIO().load_checkpoint(path)
    with pytest.raises(DamagedCheckpointError, match="objects other than tensors and plain values"):
        read_checkpoint(path)
    assert "objects other" in survey_checkpoints(tmp_path).refused[path]
    assert not (tmp_path / "ran").exists()
    VerifiedCheckpointIO().load_checkpoint(path, weights_only=False)  # asked for by the caller
    assert (tmp_path / "ran").exists()


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    io = VerifiedCheckpointIO()
    io.save_checkpoint(state(4), path)
    with pytest.raises(AttributeError, match=r"local object|pickle"):
        io.save_checkpoint({**state(8), "bad": lambda: None}, path)
    assert io.load_checkpoint(path)["global_step"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_that_cannot_grow_is_told_and_what_is_left(tmp_path):
    io = VerifiedCheckpointIO()
    io.save_checkpoint(state(4), tmp_path / "4.ckpt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(CheckpointWriteError) as caught:
            io.save_checkpoint(state(8, size=1_000_000), tmp_path / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert "last.ckpt: File too large; the last good checkpoint is " in str(caught.value)
    assert "4.ckpt; make room, or give another folder" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["4.ckpt"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match="there is no other checkpoint in that folder") as caught:
        VerifiedCheckpointIO().save_checkpoint(state(), tmp_path / "file" / "last.ckpt")
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


_WRITING = """
import runpy, sys
from pathlib import Path
replaced = runpy.run_path(sys.argv[2])["replaced"]  # without torch, which takes its time
with replaced(Path(sys.argv[1]), fsync=False) as file:
    file.write(b"half"); file.flush(); print("writing", flush=True); sys.stdin.readline()
"""


def test_leftovers_of_the_dead_are_removed_and_files_of_the_living_stay(tmp_path):
    path = tmp_path / "last.ckpt"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITING, str(path), _replace.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"writing\n"
    writers[0].kill()
    writers[0].wait()
    assert len(list(tmp_path.glob(".*.part"))) == 2
    VerifiedCheckpointIO().save_checkpoint(state(), tmp_path / "other.ckpt")
    assert len(list(tmp_path.glob(".*.part"))) == 1, "of the one that was killed"
    writers[1].communicate(b"\n")
    assert path.read_bytes() == b"half"
    assert not list(tmp_path.glob(".*.part"))
    for writer in writers:
        for pipe in (writer.stdin, writer.stdout):
            pipe.close()


@pytest.mark.parametrize("plugin", [VerifiedCheckpointIO, lambda: AsyncCheckpointIO(VerifiedCheckpointIO())])
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_in_any_script(tmp_path, plugin):
    """With Lightning's ModelCheckpoint; what it removes and overwrites is as without."""

    def trained(folder: Path, **kwargs: Any) -> Any:
        torch.manual_seed(1)
        module = supervised(model=network(0.0))
        keeper = ModelCheckpoint(folder, monitor="val/loss", save_top_k=2, save_last=True, mode="max")
        data = loader(shuffle=False)
        fit(module, keeper, data=data, val=data, max_epochs=4, enable_checkpointing=True, **kwargs)
        return module

    bare = trained(tmp_path / "bare")
    module = trained(tmp_path / "sealed", plugins=[plugin()])
    assert same(weights(bare), weights(module))
    names = {path.name for path in (tmp_path / "bare").iterdir()}
    assert len(names) == 3
    assert {path.name for path in (tmp_path / "sealed").iterdir()} == names
    for name in names:
        path = tmp_path / "sealed" / name
        verify_checkpoint(path)
        assert b"firstlight sha256" in path.read_bytes()[-90:]
        one, two = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("bare", "sealed"))
        assert same(one["state_dict"], two["state_dict"])
    keeper = ModelCheckpoint(tmp_path / "more", monitor="val/loss", mode="max")
    run = trainer(max_epochs=5, plugins=[plugin()], callbacks=[keeper], enable_checkpointing=True)
    run.fit(module, loader(shuffle=False), loader(shuffle=False), ckpt_path=tmp_path / "sealed" / "last.ckpt")
    assert run.current_epoch == 5
    os.truncate(tmp_path / "sealed" / "last.ckpt", 1000)
    with pytest.raises(DamagedCheckpointError, match="newest good one is"):
        trainer(plugins=[plugin()]).fit(module, loader(), ckpt_path=tmp_path / "sealed" / "last.ckpt")


def test_addresses_are_left_to_lightning_with_a_line(caplog):
    caplog.set_level(logging.INFO)
    io = VerifiedCheckpointIO()
    for name in ("a", "b"):
        io.save_checkpoint(state(), f"memory://folder/{name}.ckpt")
    assert io.load_checkpoint("memory://folder/a.ckpt")["global_step"] == 3
    assert [r.message for r in caplog.records].count(
        "VerifiedCheckpointIO leaves memory:// to Lightning: neither sealed nor verified"
    ) == 1
    io.remove_checkpoint("memory://folder/a.ckpt")


def test_weights_alone_are_passed_over_by_a_resume(tmp_path):
    io = VerifiedCheckpointIO()
    io.save_checkpoint({"state_dict": {}, "global_step": 9}, tmp_path / "weights.ckpt")
    assert "weights alone" in survey_checkpoints(tmp_path).refused[tmp_path / "weights.ckpt"]
    assert survey_checkpoints(tmp_path, resumable=False).step == 9
    io.save_checkpoint(state(4), tmp_path / "4.ckpt")
    assert survey_checkpoints(tmp_path).step == 4
    assert not survey_checkpoints(tmp_path).refused
    (tmp_path / "sharded.ckpt").mkdir()
    assert survey_checkpoints(tmp_path).step == 4
