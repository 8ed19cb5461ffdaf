"""The server of a generated project answers over HTTP with a model that was trained and exported."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.tiny import DEFAULT, Project

from .conftest import Bake, clean_environment

for needed in ("litserve", "onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.slow


def post(address: str, question: Any) -> tuple[int, Any]:
    body = json.dumps(question).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def exported(tmp_path: Path) -> Any:
    project = Project(tmp_path / "trained")
    project.write("configs/default.yaml", DEFAULT)
    project.run("fit", "--trainer.max_epochs=1")
    return project.run("export")


@pytest.fixture
def address(exported: Any, bake: Bake, tmp_path: Path) -> Iterator[str]:
    """The project's own server, on a port that is free, stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tmp_path / "server.txt"
    with said.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "first_light.serve", "--port", str(port)],
            cwd=exported.project_root,  # where it looks for the newest run
            env={**clean_environment(tmp_path), "PYTHONPATH": str(bake(task="blank") / "src")},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for _ in range(240):
            if server.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    yield f"http://127.0.0.1:{port}/predict"
                    return
            except OSError:  # not yet listening, or not yet ready
                time.sleep(0.25)
        pytest.fail(said.read_text())
    finally:
        os.killpg(server.pid, 9)  # its workers too
        server.wait()


def test_the_server_answers_as_the_model_does(exported: Any, address: str) -> None:
    x = torch.randn(3, 8)
    with torch.no_grad():
        expected = exported.model.eval()(x)
    status, answer = post(address, {"input": x.tolist()})
    assert status == 200
    assert torch.allclose(torch.tensor(answer["output"]), expected, atol=1e-5)
    for wrong in ({}, {"input": "words"}, {"input": [[1.0, 2.0]]}, {"input": [1.0] * 8}):
        status, answer = post(address, wrong)
        assert status == 422
        assert "'input' must be of shape ['batch', 8], float32" in answer["detail"]
    status, _ = post(address, {"input": x[:1].tolist()})
    assert status == 200, "mistakes of one asker do not stop it"
