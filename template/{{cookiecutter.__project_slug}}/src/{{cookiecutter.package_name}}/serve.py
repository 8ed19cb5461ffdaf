"""Answer over HTTP with an exported model. Run ``export`` first; needs the extras ``export`` and ``serve``.

It listens on this machine alone: put a server that knows who may ask in front of it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import onnxruntime
from fastapi import HTTPException


class ExportedModel(litserve.LitAPI):
    """``POST /predict`` takes inputs by name, as nested lists, and answers with outputs by name."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "export.json").read_text("utf-8"))

    def setup(self, device: str) -> None:
        """Load the model, once in each worker."""
        path = self.folder / "model.onnx"
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the inputs; what the model cannot take is the asker's mistake, and told as such."""
        inputs = {}
        for wanted in self.facts["inputs"]:
            name, shape = wanted["name"], wanted["shape"]
            expected = f"{name!r} must be of shape {shape}, {wanted['dtype']}"
            try:
                inputs[name] = np.asarray(request[name], dtype=wanted["dtype"])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise HTTPException(422, expected) from None
            sizes = zip(inputs[name].shape, shape, strict=False)
            if inputs[name].ndim != len(shape) or any(isinstance(s, int) and s != n for n, s in sizes):
                raise HTTPException(422, f"{expected}; it is of shape {list(inputs[name].shape)}")
        return inputs

    def predict(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the model."""
        outputs: list[np.ndarray] = self.session.run(None, inputs)
        return outputs

    def encode_response(self, outputs: list[np.ndarray]) -> dict[str, Any]:
        """Return the outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return {name: output.tolist() for name, output in zip(names, outputs, strict=True)}


def newest_export(runs: Path) -> Path:
    """Return the folder of the newest run that was exported to ONNX."""
    found = [path.parent for path in runs.glob("*/*/export/model.onnx")]
    if not found:
        raise SystemExit(f"no exported model under {runs}: run export first, or give --folder")
    return max(found, key=lambda folder: folder.parent.name)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="Answer with an exported model.", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, help="what export wrote (default: of the newest run in runs/)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    server = litserve.LitServer(ExportedModel(asked.folder or newest_export(Path("runs"))), accelerator="cpu")
    server.run(host=asked.host, port=asked.port, generate_client_file=False)


if __name__ == "__main__":
    main()
