"""The ``firstlight`` command: what it says, where it writes, and with which code it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from datetime import date, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
from preflight.reports import broken, clean, crashed, finding, report

from firstlight.checks import CHECKS, Severity, known_checks
from firstlight.cli import _checking, main
from helpers import loader

SETUP = """
    import torch
    from torch import nn
    from helpers import Plain, loader

    made = Plain()

    class Twice(Plain):
        def training_step(self, batch, batch_idx):
            print("noise of the user's own")
            return nn.functional.cross_entropy(self.net(batch[0]).softmax(1), batch[1])

    class Dropping(Plain):
        def __init__(self, chance: float = 0.5):
            super().__init__()
            self.drop = nn.Dropout(chance)
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(self.drop(batch[0])), batch[1])

    class Needs(Plain):
        def __init__(self, width, depth=2):
            super().__init__()

    class Fails(Plain):
        def __init__(self):
            super().__init__()
            raise RuntimeError("no weights at hand\\nsecond line")

    def broken_data():
        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 8
            def __getitem__(self, index):
                raise OSError("the disk is gone")
        return torch.utils.data.DataLoader(Data())
"""


SCRIPT = """
    import argparse
    from lightning.pytorch import Trainer
    from helpers import loader
    from setup_here import Plain, Twice  # beside it

    class Mine(Twice):
        pass

    if __name__ == "__main__":
        parser = argparse.ArgumentParser()
        for name in ("--softmax", "--raises", "--other"):
            parser.add_argument(name, action="store_true")
        asked = parser.parse_args()
        print("noise of the script")
        if asked.raises:
            raise RuntimeError("no data")
        if asked.other:
            import pytorch_lightning
            pytorch_lightning.Trainer(accelerator="cpu", logger=False).fit(None)
        trainer = Trainer(max_epochs=7, accelerator="cpu", logger=False, enable_checkpointing=False)
        try:
            trainer.fit(Mine() if asked.softmax else Plain(), loader())
        except Exception:
            print("caught")
        print("trained")
"""


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """A file with a module and data beside the tests' working directory; imports of it are forgotten after."""
    before, path = set(sys.modules), list(sys.path)
    (tmp_path / "setup_here.py").write_text(textwrap.dedent(SETUP))
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.delitem(sys.modules, "firstlight.cli._of_targets", raising=False)  # a program, that doctests import

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        said = capsys.readouterr()
        if ended.value.code == 2:
            assert said.out == ""
            assert said.err.startswith("error: ")
            assert len(said.err.strip().splitlines()) <= 10
            assert "Traceback" not in said.err
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture
def finds(monkeypatch):
    """Let the command receive a report made by hand: what it does with it is looked at here."""

    def give(shown):
        def instead(module, data, **kwargs):
            print("noise of the user's own")
            return shown

        monkeypatch.setattr(_checking, "run_preflight", instead)

    return give


CHECK = ("check", "setup_here.py:Twice", "--data", "helpers:loader")
VERIFY = ("verify-resume", "setup_here.py:Twice")


def test_explain_knows_every_check_by_code_and_by_name(run):
    assert set(known_checks()) >= {check.code for check in CHECKS}
    for check in known_checks().values():
        for word in (check.code, check.code.lower(), check.name):
            code, said, _ = run("explain", word)
            assert code == 0
            assert said.startswith(f"{check.code} {check.name}: {check.title}\n")
            assert "Rule:" in said
            assert "Known false alarms:" in said
            assert check.why in " ".join(said.split())


def test_explain_alone_lists_all(run):
    code, said, _ = run("explain")
    assert code == 0
    assert [line.split()[:2] for line in said.splitlines()] == [
        [code, check.name] for code, check in known_checks().items()
    ]


@pytest.mark.parametrize(
    ("word", "near"), [("FL100", "FL101, FL102, FL103"), ("softmax_twise", "softmax_twice"), ("FL9", "")]
)
def test_an_unknown_code_is_answered_with_those_near_it(run, word, near):
    code, _, said = run("explain", word)
    assert code == 2
    assert f"{word!r} is no code of a check" in said
    assert near in said


@pytest.mark.parametrize(
    ("shown", "fail_on", "code"),
    [
        (clean(), "info", 0),
        (broken(), "error", 1),
        (report(finding("FL103", Severity.WARNING)), "error", 0),
        (report(finding("FL103", Severity.WARNING)), "warning", 1),
        (report(finding("FL404", Severity.INFO)), "warning", 0),
        (report(finding("FL404", Severity.INFO)), "info", 1),
        (report(others=(crashed("FL205"),)), "error", 3),
        (report(over_budget=True), "error", 4),
    ],
)
def test_the_code_says_what_was_found(setup, run, finds, shown, fail_on, code):
    finds(shown)
    assert run(*CHECK, "--fail-on", fail_on)[0] == code


def test_a_preflight_that_fails_itself_is_no_finding(setup, run, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr(_checking, "run_preflight", fails)
    code, out, err = run(*CHECK)
    assert (code, out) == (3, "")
    assert "RuntimeError: ours" in err
    assert "the preflight itself failed" in err


@pytest.mark.parametrize("form", ["json", "sarif", "junit", "html"])
def test_a_form_on_standard_output_is_that_form_alone(setup, run, finds, form):
    finds(broken())
    code, out, err = run(*CHECK, "--format", form)
    assert code == 1
    assert "noise of the user's own" in err
    starts = {"json": "{", "sarif": "{", "junit": "<?xml", "html": "<!DOCTYPE html>"}
    assert out.startswith(starts[form])
    if form in ("json", "sarif"):
        json.loads(out)
    elif form == "junit":
        ElementTree.fromstring(out.encode())  # noqa: S314  our own
    else:
        assert out.rstrip().endswith("</html>")


def test_a_file_gets_the_form_and_the_terminal_the_text(setup, run, finds):
    finds(broken())
    code, out, _ = run(*CHECK, "--format", "sarif", "--output", "found.sarif")
    assert code == 1
    driver = json.loads(Path("found.sarif").read_text())["runs"][0]["tool"]["driver"]
    assert driver["name"] == "firstlight"
    assert out.startswith("ERROR: cannot learn as written")
    assert out.endswith("\nreport: found.sarif\n")


def test_findings_without_a_line_are_shown_at_the_module(setup, run, finds):
    finds(report(finding("FL202", Severity.ERROR)))
    out = run(*CHECK, "--format", "sarif")[1]
    (location,) = json.loads(out)["runs"][0]["results"][0]["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "setup_here.py"


def test_a_comment_at_the_module_is_heeded(setup, run, finds):
    path = setup / "setup_here.py"
    path.write_text(path.read_text().replace("made = ", "# firstlight: ignore[FL202] from a checkpoint\nmade = "))
    finds(report(finding("FL202", Severity.ERROR)))
    code, out, _ = run(*CHECK)
    assert code == 0
    assert "FL202 dead_units at net.2: from a checkpoint" in out
    path.write_text(path.read_text().replace(" from a checkpoint", ""))
    code, _, err = run(*CHECK)
    assert code == 2
    assert "the reason to ignore FL202" in err


def test_a_baseline_is_written_then_heeded_then_expires(setup, run, finds):
    finds(report(*broken().findings))
    code, out, _ = run(*CHECK, "--write-baseline", "base.json")
    assert code == 0
    assert out.startswith("baseline: 3 new, 0 kept, in base.json\n")
    assert run(*CHECK, "--baseline", "base.json")[0] == 0
    finds(report(finding("FL102", Severity.ERROR), finding("FL101", Severity.ERROR)))
    assert run(*CHECK, "--baseline", "base.json")[0] == 1
    entries = json.loads(Path("base.json").read_text())
    entries[0]["expires"] = (date.today() - timedelta(days=1)).isoformat()
    Path("base.json").write_text(json.dumps(entries))
    finds(report(*broken().findings))
    code, out, _ = run(*CHECK, "--baseline", "base.json")
    assert code == 1
    assert "FL102 at src/net.py:12 counts again" in out
    code, out, _ = run(*CHECK, "--baseline", "base.json", "--write-baseline", "base.json")
    assert (code, out.splitlines()[0]) == (0, "baseline: 1 new, 2 kept, in base.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("chek",), "invalid choice: 'chek'"),
        (("check",), "the following arguments are required: TARGET"),
        (("check", "setup_here"), "TARGET must be package.module:Name or path/to/file.py:Name; got 'setup_here'"),
        (("check", "nowhere.py:Net"), "TARGET: there is no file nowhere.py"),
        (("check", "no_such_package.module:Net"), "ModuleNotFoundError: No module named 'no_such_package'"),
        (("check", "setup_here.py:Twise"), "setup_here.py has no 'Twise'; did you mean 'Twice'?"),
        (("check", "setup_here.py:Needs"), "setup_here.py:Needs needs arguments: width"),
        (("check", "setup_here.py:Fails"), "setup_here.py:Fails cannot be built: RuntimeError: no weights at hand"),
        (("check", "setup_here.py:Twice"), "Twice has no train_dataloader of its own"),
        (("check", "setup_here.py:loader"), "module must be a LightningModule"),
        (("check", "setup_here.py:made", "--data", "setup_here.py:broken_data"), "OSError: the disk is gone"),
        (("check", "nowhere.py"), "there is no file nowhere.py"),
        (("check", "setup_here.py"), "setup_here.py ended without a call of trainer.fit"),
        (("check", "train.py", "--data", "helpers:loader"), "--data goes with a module; a script has its own"),
        (("check", "train.py", "--softmax"), "unrecognized arguments: --softmax"),
        ((*CHECK, "--", "--softmax"), "setup_here.py:Twice is no script, and takes no arguments"),
        (("explain", "FL302", "--", "a"), "-- stands before the arguments of a script"),
        ((*CHECK, "--budget", "0"), "--budget must be above zero, in seconds; got 0.0"),
        ((*CHECK, "--budget", "nan"), "--budget must be above zero, in seconds; got nan"),
        ((*CHECK, "--fail-on", "fatal"), "invalid choice: 'fatal'"),
        ((*CHECK, "--output", "none/report.json"), "--output: there is no folder none"),
        ((*CHECK, "--baseline", "none.json"), "there is no baseline none.json"),
        ((*CHECK, "--form", "json"), "unrecognized arguments: --form json"),
        (("verify-resume",), "the following arguments are required: TARGET"),
        (("verify-resume", "setup_here.py:Twise"), "setup_here.py has no 'Twise'; did you mean 'Twice'?"),
        (("verify-resume", "setup_here.py:made"), "must name a LightningModule, or a function that returns one"),
        (("verify-resume", "setup_here.py:Twice"), "setup_here.py:Twice has no train_dataloader of its own"),
        ((*VERIFY, "--data", "setup_here.py:Twice"), "--data must name a LightningDataModule, or a function"),
        ((*VERIFY, "--data", "helpers:loader", "--stpes", "3"), "stpes is no key of the configuration; did you mean"),
        ((*VERIFY, "--data", "helpers:loader", "--model.widht=3"), "model.widht is no key"),
        (("report", "none"), "there is no folder or file none"),
        (("report", "."), "no report of a preflight in ."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_told_in_a_few_lines(setup, run, words, said):
    code, _, err = run(*words)
    assert code == 2
    assert said in err


def test_a_file_that_does_not_parse_is_named_with_its_line(setup, run):
    (setup / "bad.py").write_text("x = 1\nclass Net(\n")
    assert re.search(r"bad.py cannot be imported: SyntaxError.*\n  in bad.py:2", run("check", "bad.py:Net")[2])
    (setup / "exits.py").write_text("raise SystemExit(0)\n")
    assert "exits.py ends the program when it is imported" in run("check", "exits.py:Net")[2]


def test_a_file_in_a_package_may_import_its_neighbours(setup, run, finds):
    package = setup / "pack_age" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "base.py").write_text("from helpers import Plain as Base\n")
    (package / "net.py").write_text("from .base import Base\nclass Net(Base):\n    pass\n")
    finds(clean())
    assert run("check", "pack_age/inner/net.py:Net", "--data", "helpers:loader")[0] == 0
    assert run("check", "pack_age.inner.net:Net", "--data", "helpers:loader")[0] == 0


def test_reports_in_a_run_folder_are_shown(setup, run):
    (setup / "run").mkdir()
    (setup / "run" / "preflight.json").write_text(broken().to_json())
    (setup / "run" / "other.json").write_text('{"a": 1}')
    code, out, _ = run("report", "run")
    assert code == 0
    assert out.startswith("run/preflight.json\n\nERROR: cannot learn as written")
    code, out, _ = run("report", "run/preflight.json", "--format", "html", "--output", "page.html")
    assert (code, out) == (0, "")
    assert Path("page.html").read_text() == broken().to_html()


def test_resumes_of_what_no_project_holds_are_verified(setup):
    """A new interpreter is part of it: in a process of its own."""
    (setup / "run.yaml").write_text("data:\n  num_samples: 32\ntrainer:\n  max_epochs: 4\n")
    (setup / "configs").mkdir()
    (setup / "configs" / "default.yaml").write_text("defaults: [of, another, program]\n")
    words = ["setup_here.py:Dropping", "--config=run.yaml", "--data", "helpers:loader", "--stop_at=2", "--steps", "3"]
    environment = {**os.environ, "TMPDIR": str(setup), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    program = [sys.executable, "-c", "import sys; sys.argv[0] = 'firstlight'; from firstlight.cli import main; main()"]
    ended = subprocess.run(
        [*program, "verify-resume", *words], env=environment, cwd=setup, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("equal") == 10
    assert "exact: " in ended.stdout
    assert sorted(path.name for path in setup.iterdir() if path.name != "__pycache__") == [
        "configs",
        "run.yaml",
        "setup_here.py",
        "train.py",
    ]


@pytest.mark.slow
def test_a_real_check_from_end_to_end(setup, run):
    code, out, _ = run(*CHECK, "--format", "json", "--budget", "10", "--seed", "3")
    assert code == 1
    values = json.loads(out)
    assert values["diagnosis"]["root"]["name"] == "softmax_twice"
    assert values["environment"]["seed"] == 3
    assert run("check", "setup_here.py:made", "--data", "helpers:loader", "--budget", "0.001")[0] == 4


@pytest.mark.slow
def test_a_script_is_checked_as_it_stands(setup, run):
    """With its own Trainer, data and arguments, up to its fit."""
    code, out, err = run("check", "train.py", "--format=json", "--", "--softmax")
    values = json.loads(out)
    assert (code, values["diagnosis"]["root"]["name"]) == (1, "softmax_twice")
    environment = values["environment"]
    assert (environment["source"], environment["module"]) == ("train.py:1", "Mine")
    assert environment["planned_steps"] == 7 * len(loader())
    assert "noise of the script" in err
    assert "caught" not in err
    assert "trained" not in err
    assert run("check", "train.py")[0] == 0


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--worse", "error: train.py ended with 2 before it called trainer.fit\n  what it is to be told stands at the"),
        (
            "--raises",
            "error: train.py raised before it called trainer.fit: RuntimeError: no data\n  raised in train.py:17",
        ),
        ("--other", "error: the script trains with pytorch_lightning\n  a preflight takes what is made of lightning"),
    ],
)
def test_a_script_that_does_not_come_to_its_fit(setup, capsys, run, word, told):
    with pytest.raises(SystemExit) as ended:
        main(["check", "train.py", "--", word])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert told in said.err
    assert "Traceback" not in said.err


def test_the_script_is_installed_under_its_name():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '[project.scripts]\nfirstlight = "firstlight.cli:main"\n' in pyproject
