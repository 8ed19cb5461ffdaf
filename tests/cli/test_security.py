"""A configuration can name what a project needs, and run nothing else."""

from __future__ import annotations

import time

import jsonargparse
import pytest
from cli.tiny import Project

EVIL = "from pathlib import Path\nPath({mark!r}).touch()\nimport torch\nclass Evil(torch.nn.Module): pass\n"
WAYS = {
    "model": ["--model.model=evil.Evil"],
    "argument": ["--model.loss.class_path=evil.Evil"],
    "callback": ["--trainer.callbacks+=evil.Evil"],
    "callable": ["--model.optimizer=evil.Evil"],
    "schedule": ["--learning_rate.schedule=evil.Evil"],
    "system": ["--model.optimizer=os.system"],
    "file": ["-c", "x.yaml"],
}


@pytest.fixture
def mark(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path):
    mark = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(EVIL.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    project.write("x.yaml", "model: {loss: {class_path: evil.Evil}}")
    return mark


@pytest.mark.parametrize("words", WAYS.values(), ids=WAYS)
def test_another_package_is_refused_before_it_is_imported(words, mark, refused):
    assert "which it may not import" in refused("fit", *words)
    assert not mark.exists()


def test_it_is_imported_where_the_project_says_so(mark, project):
    with pytest.raises(NotImplementedError):  # it is no loss
        project.run("fit", "-c", "x.yaml", allowed_packages=["evil"])
    assert mark.exists()


def test_other_parsers_of_the_process_keep_their_ways(project, mark):
    project.run("fit", "--trainer.fast_dev_run=true")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--what", type=type)
    assert parser.parse_args(["--what=decimal.Decimal"]).what.__name__ == "Decimal"


def test_aliases_of_aliases_are_refused_at_once(project, refused):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    project.write("x.yaml", "\n".join(lines))
    start = time.process_time()
    assert "values by its aliases" in refused("fit", "-c", "x.yaml")
    assert time.process_time() - start < 5


def test_deep_nesting_is_refused(project, refused):
    project.write("x.yaml", "a: " + "[" * 5000 + "]" * 5000)
    assert "nested too deeply" in refused("fit", "-c", "x.yaml")
