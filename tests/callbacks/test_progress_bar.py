import os
import re
import struct
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import MulticlassAccuracy

from firstlight.callbacks import ProgressBar
from helpers import fit, loader, same, supervised, weights


def module():
    return supervised(metrics={"accuracy": MulticlassAccuracy(num_classes=4)})


def run(*bars, capsys=None, **options):
    fit(module(), *bars, val=loader(shuffle=False), enable_progress_bar=True, **options)
    return capsys.readouterr().out if capsys else None


NUMBER = r"[\d.e+-]+"
LINE = re.compile(
    rf"epoch (\d)/3  step (\d+)  train/loss {NUMBER}  val/loss {NUMBER}  val/accuracy {NUMBER}  lr 0\.1000  {NUMBER} s"
)


def test_a_file_gets_one_plain_line_an_epoch(capsys):
    output = run(ProgressBar(), capsys=capsys, max_epochs=3)
    found = [LINE.fullmatch(line) for line in output.splitlines()]
    assert all(found), output
    assert [(m[1], m[2]) for m in found] == [("1", "12"), ("2", "24"), ("3", "36")]
    assert not set("\r\x1b") & set(output)


def test_the_values_are_those_of_the_trainer(capsys):
    bar = ProgressBar()
    trainer = fit(module(), bar, val=loader(shuffle=False), enable_progress_bar=True, max_epochs=3)
    last = capsys.readouterr().out.splitlines()[-1]
    for key in ("train/loss", "val/loss", "val/accuracy"):
        assert f"{key} {trainer.callback_metrics[key].item():.4f}" in last


@pytest.mark.slow
def test_a_terminal_gets_a_bar(tmp_path):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    script = tmp_path / "script.py"
    script.write_text(
        "from helpers import fit, loader, supervised\n"
        "from firstlight.callbacks import ProgressBar\n"
        "fit(supervised(), ProgressBar(), val=loader(shuffle=False), enable_progress_bar=True, log_every_n_steps=5)\n"
    )
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # rows and columns
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, str(script)], stdin=inside, stdout=inside, stderr=inside, env=environ)
    os.close(inside)
    output = b""
    try:
        while piece := os.read(outside, 4096):
            output += piece
    except OSError:  # how a pty says that its other end is closed
        pass
    os.close(outside)
    text = output.decode()
    assert process.wait(60) == 0, text
    bars = [part for part in text.split("\r") if "train/loss=" in part]
    assert bars, text
    assert "v_num" not in text
    assert "epoch 1/2" not in text


def test_a_notebook_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    fit(module(), ProgressBar(), enable_progress_bar=True)
    captured = capsys.readouterr()
    assert "epoch 1/" not in captured.out
    assert "Epoch 1" in captured.out


@pytest.mark.parametrize(("style", "lines"), [("lines", True), ("bar", False)])
def test_the_style_can_be_chosen(style, lines, capsys):
    output = run(ProgressBar(style=style), capsys=capsys, max_epochs=3)
    assert ("epoch 1/3" in output) is lines
    assert ("\r" in output) is not lines


def test_it_can_be_switched_off(capsys):
    assert run(ProgressBar(refresh_rate=0), capsys=capsys) == ""


def test_a_long_epoch_says_that_it_is_alive(capsys):
    output = run(ProgressBar(line_every_n_seconds=1e-9), capsys=capsys, max_epochs=1)
    lines = output.splitlines()
    assert len(lines) == 13
    assert re.match(rf"epoch 1/1  step 3  batch 3/12  train/loss {NUMBER}  lr 0\.1000  {NUMBER} s", lines[2])


def test_print_writes_a_line(capsys):
    class Speaks(type(module())):
        def on_train_epoch_start(self):
            self.print("hello", 3)

    bar = ProgressBar()
    spoken = Speaks(model=module().model, loss=module().loss)
    fit(spoken, bar, enable_progress_bar=True, max_epochs=1)
    assert capsys.readouterr().out.splitlines()[0] == "hello 3"


def test_runs_without_epochs_or_validation(capsys):
    fit(supervised(), ProgressBar(), enable_progress_bar=True, max_epochs=-1, max_steps=20)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf"epoch 2  step 20  train/loss {NUMBER}  lr 0\.1000  {NUMBER} s", lines[-1])


class Reads(TorchDispatchMode):
    """Counts the values read from tensors: on a device, each is a wait."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen["reads"] += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("style", ["bar", "lines"])
def test_the_loss_is_read_once_a_log_window(style, capsys):
    counts = {}
    for bar in (None, ProgressBar(style=style)):
        with Reads() as reads:
            fit(
                supervised(),
                *filter(None, [bar]),
                enable_progress_bar=bar is not None,
                max_epochs=1,
                log_every_n_steps=4,
            )
        counts[bar is not None] = reads.seen["reads"]
    assert counts[True] - counts[False] <= 12 / 4 + 3  # 12 steps


def test_training_is_bit_for_bit_the_same(capsys):
    results = []
    for bars in ((), (ProgressBar(),), (ProgressBar(style="bar"),)):
        made = module()
        fit(made, *bars, val=loader(shuffle=False), enable_progress_bar=bool(bars))
        results.append((weights(made), torch.get_rng_state()))
    for state, rng in results[1:]:
        assert same(results[0][0], state)
        assert torch.equal(results[0][1], rng)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"style must be auto, bar or lines; did you mean 'lines'\?; got 'line'"):
        ProgressBar(style="line")
    with pytest.raises(ValueError, match="refresh_rate must be 0"):
        ProgressBar(refresh_rate=-1)
    with pytest.raises(ValueError, match="line_every_n_seconds must be above zero"):
        ProgressBar(line_every_n_seconds=0)
