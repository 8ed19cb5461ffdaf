"""The model and data that a checkpoint belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from firstlight.cli._checkpoints import read
from firstlight.cli._run_folder import run_folder_of
from firstlight.tracking import redact

_MASK = redact({"password": "any"})["password"]  # what stands in config.yaml for a secret


def trained_with(checkpoint: Path) -> dict[str, Any]:
    """Return ``model`` and ``data`` as the checkpoint was trained with them.

    From its run's config.yaml, else, for the model alone, from what the checkpoint itself says.
    """
    run = run_folder_of(checkpoint)
    if run:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return {key: _without_masked(config[key]) for key in ("model", "data") if config.get(key)}
    values = dict(read(checkpoint).get("hyper_parameters") or {})
    values.pop("_instantiator", None)
    if "_class_path" in values:
        values = {"class_path": values.pop("_class_path"), "init_args": values}
    return {"model": _without_masked(values)} if values else {}


def _without_masked(value: Any) -> Any:
    """Leave out what config.yaml does not tell; the project's own files and arguments do."""
    if not isinstance(value, dict):
        return value
    return {k: _without_masked(v) for k, v in value.items() if isinstance(v, dict) or _MASK not in str(v)}
