"""Secrets planted wherever a user has some, and names made to break out: nothing that is written holds either."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.tiny import Project, TinyData
from lightning.pytorch import LightningModule
from torch import nn

from firstlight.cli import FirstlightCLI
from firstlight.preflight import run_preflight
from helpers import Plain, loader

# Where it is planted -> the secret. Each is told apart from the others, and found again by its own words.
ENVIRONMENT = {
    "WANDB_API_KEY": "0badc0de" * 5,
    "HF_TOKEN": "hf_environmentEnvironment",
    "AWS_SECRET_ACCESS_KEY": "aws/Environment+Secret",
    "DATABASE_PASSWORD": "environment-hunter2",
}
CONFIG = {"api_key": "sk-config-file", "password": "config-hunter2", "login": "config-url-login"}
ARGV = {"api_key": "sk-argument", "token": "argument-token"}
DISK = {"remote": "ghp-remote-login", "env": "sk-dot-env", "source": "sk-in-the-source", "yaml": "yaml-hunter2"}
SECRETS = [secret for place in (ENVIRONMENT, CONFIG, ARGV, DISK) for secret in place.values()]
CANARY = "a value of no secret"  # it is to be found: the search finds what is there


class SecretiveData(TinyData):
    """Data of somebody who keeps all arguments, as Lightning's examples do."""

    def __init__(
        self,
        batch_size: int = 8,
        num_samples: int = 32,
        api_key: str | None = None,
        hub_token: str | None = None,
        hub: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size, num_samples, api_key)
        self.hub_token = hub_token
        self.save_hyperparameters()


def git(folder: Path, *words: str) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def secretive(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Project]:
    """A project with secrets in the environment, a configuration, the repository, and on the command line."""
    pytest.importorskip("wandb")
    environment = ENVIRONMENT | {"HOME": str(tmp_path / "home")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield _with_secrets(project, monkeypatch)


def _with_secrets(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    project.write(".env", "DEBUG=1\n")
    project.write("hub.py", "import os\n")
    project.write("hub.yaml", "retries: 1\n")
    git(project.root, "init", "-q")
    git(project.root, "remote", "add", "origin", f"https://me:{DISK['remote']}@host/x.git")
    git(project.root, "add", "-A")
    git(project.root, "commit", "-q", "-m", "first")
    project.write(".env", f"DEBUG=1\nHUB_TOKEN={DISK['env']}\n")
    project.write("hub.py", f"import os\napi_key = '{DISK['source']}'\n")
    project.write("hub.yaml", f"retries: 1\npassword: {DISK['yaml']}\n")
    project.write(
        "configs/hub.yaml",
        f"""
        run_manifest: {{}}
        data:
          api_key: {CONFIG["api_key"]}
          hub: {{password: {CONFIG["password"]}, url: "https://me:{CONFIG["login"]}@host/x", note: {CANARY}}}
        """,
    )
    monkeypatch.chdir(project.root)
    return project


def run(project: Project, monkeypatch: pytest.MonkeyPatch, *words: str) -> FirstlightCLI:
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    return FirstlightCLI(
        project.module, SecretiveData, project_root=project.root, args=list(words), allowed_packages=["modules"]
    )


def holders(folder: Path, word: str, *, but: set[Path]) -> list[str]:
    """Return which files under ``folder`` hold ``word``, in the names of the files too."""
    files = [path for path in folder.rglob("*") if path.is_file() and path not in but and ".git" not in path.parts]
    return [str(path.relative_to(folder)) for path in files if word.encode() in path.read_bytes() or word in str(path)]


@pytest.mark.slow
def test_planted_secrets_are_in_nothing_that_a_run_leaves(
    secretive: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planted = {path for path in tmp_path.rglob("*") if path.is_file()}
    hub = ("-c", "configs/hub.yaml")
    cli = run(secretive, monkeypatch, "fit", *hub, "--wandb={}", "--data.hub_token", ARGV["token"])
    assert cli.datamodule.hub_token == ARGV["token"]
    assert cli.datamodule.api_key == CONFIG["api_key"]
    cli.trainer.loggers[1].finish()
    cli.trainer.save_checkpoint(cli.run_folder / "weights.ckpt", weights_only=True)
    for form in ("html", "json", "sarif", "junit"):
        words = ["check", *hub, f"--data.api_key={ARGV['api_key']}", "--budget=1"]
        with suppress(SystemExit):  # what the report finds is not the question here
            run(secretive, monkeypatch, *words, f"--format={form}", f"--output=check.{form}")
        assert (secretive.root / f"check.{form}").stat().st_size > 100
    for command in ("validate", "test", "predict"):
        run(secretive, monkeypatch, command, f"--data.api_key={ARGV['api_key']}", "--data.hub_token", ARGV["token"])
    said = "".join(capfd.readouterr())
    written = {str(path.relative_to(cli.run_folder)) for path in cli.run_folder.rglob("*")}
    parts = {"config.yaml", "manifest.json", "git.diff", "metrics.csv", "weights.ckpt", "checkpoints/last.ckpt"}
    assert parts <= written
    assert [name for name in written if name.startswith("predict/")]
    assert [name for name in written if name.endswith(".wandb")]
    assert holders(tmp_path, CANARY, but=planted), "the search finds nothing at all"
    found = {secret: holders(tmp_path, secret, but=planted) for secret in SECRETS}
    assert {secret: files for secret, files in found.items() if files} == {}
    assert [secret for secret in SECRETS if secret in said] == []
    state = torch.load(cli.run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["datamodule_hyper_parameters"]["hub"]["note"] == CANARY


EVIL = "<script>alert('1')</script><img src=x onerror=alert(1)>&\"'"


class Named(Plain):
    """A network whose parts have names that a page must not take for its own words."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential()
        self.net.add_module(EVIL.replace(".", ""), nn.Linear(8, 4))
        self.register_parameter("unused<script>", nn.Parameter(torch.zeros(3)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


Named.__qualname__ = Named.__name__ = EVIL


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_names_of_modules_and_parameters_are_text_in_a_page() -> None:
    module: LightningModule = Named()
    report = run_preflight(module, loader(), budget_seconds=2)
    page = report.to_html()
    assert "unused&lt;script&gt;" in page, "the page names the parameter"
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert "<script" not in page.lower()
    assert "<script" not in re.sub(r"<!\[CDATA\[.*?\]\]>", "", report.to_junit(), flags=re.DOTALL).lower()


NAMES = ["../x", "..", "a/../../x", "/etc/x", "a\nb", "a\rb", "a\x00b", " ", "a b", "-rf", "$(touch x)", "`x`", "a;b",
         "{{x}}", "<b>", "a\\b", "é", "CON:", "x" * 81]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_the_name_of_a_run_cannot_leave_the_folder(name: str, project: Project, refused: Any) -> None:
    assert "run_name must be letters" in refused("fit", f"--run_name={name}")
