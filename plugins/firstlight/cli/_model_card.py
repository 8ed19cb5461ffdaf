"""``model_card.md``: what a trained model is, from the records of its run, and what its author has yet to say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule

from firstlight._spec import class_path
from firstlight.cli._checkpoints import Checkpoint, read
from firstlight.cli._say import say, short
from firstlight.tracking import read_metrics, redact

_BEGIN = "<!-- written by `test`, anew each time; what you write outside of these two marks stays -->"
_END = "<!-- end of what `test` writes -->"
_FOR_THE_AUTHOR = """
## Intended use

TODO (author): what is the model for, who may use it, and on what kind of data?

## Not intended

TODO (author): what must it not be used for?

## Data

TODO (author): where does the data come from, under which license, and whom or what does it leave out?

## Limits

TODO (author): where does it fail, and how would one notice?
"""
_NOT_RECORDED = "not recorded"
_RECIPE = ("seed_everything", "model", "data", "learning_rate", "batch_mixing", "gradient_clipping", "weight_ema")
_SCALE = ("devices", "num_nodes", "strategy", "precision")
_TRAINER = ("max_epochs", "max_steps", "max_time", *_SCALE, "accumulate_grad_batches", "gradient_clip_val")


def write_model_card(run: Path, module: LightningModule, checkpoint: Checkpoint, tested: Mapping[str, Any]) -> None:
    """Write the card of a run's best checkpoint, which has been tested; what its author wrote into it stays."""
    path = run / "model_card.md"
    written = f"{_BEGIN}\n{_facts(run, module, checkpoint, tested)}{_END}\n"
    if path.is_file():
        before, begin, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
        _, end, after = rest.partition(f"{_END}\n")
        if not begin or not end:
            say(f"model card: {short(path)} has lost its marks and is left as it is")
            return
        text = before + written + after
    else:
        text = written + _FOR_THE_AUTHOR
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    say(f"model card: {short(path)}")


def _facts(run: Path, module: LightningModule, checkpoint: Checkpoint, tested: Mapping[str, Any]) -> str:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in _manifests(run)]
    first: dict[str, Any] = manifests[0] if manifests else {}
    loss = getattr(module, "loss", None)
    packages = first.get("packages", {})
    versions = [f"{name} {packages[name]}" for name in ("torch", "lightning", "firstlight") if name in packages]
    rows = {
        "module": f"`{class_path(type(module))}`",
        "loss": f"`{class_path(type(loss))}`" if isinstance(loss, torch.nn.Module) else "see the module",
        "parameters": f"{sum(p.numel() for p in module.parameters()):,}",
        "run": f"`{run.parent.name}/{run.name}`",
        "checkpoint": f"`checkpoints/{checkpoint.path.name}`, step {checkpoint.step}{checkpoint.score}",
        "data": _data(first),
        "code": "; ".join(dict.fromkeys(map(_code, manifests))) or _NOT_RECORDED,
        "trained with": ", ".join([f"Python {first['python']}", *versions]) if first else _NOT_RECORDED,
        "started": first.get("time_utc", _NOT_RECORDED),
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return (
        f"# {run.parent.name}\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Metrics\n\n{_metrics(run, checkpoint, tested)}\n"
        f"## Recipe\n\n```yaml\n{_recipe(config)}```\n\n"
        f"## How to load it\n\n{_loading(module, checkpoint)}\n"
    )


def _manifests(run: Path) -> list[Path]:
    """Return the manifests of a run: of its start, then of each time that it was resumed."""
    return sorted(run.glob("manifest*.json"), key=lambda path: int((re.findall(r"-(\d+)\.", path.name) or ["1"])[0]))


def _data(manifest: Mapping[str, Any]) -> str:
    data = manifest.get("data") or {}
    fingerprint = data.get("fingerprint")
    told = json.dumps(_without_places(redact({"fingerprint": fingerprint})["fingerprint"])) if fingerprint else ""
    told = f"`{told}`" if told else f"{_NOT_RECORDED} (a datamodule may have a `fingerprint()`)"
    return f"`{data['class']}`, fingerprint {told}" if data.get("class") else _NOT_RECORDED


def _code(manifest: Mapping[str, Any]) -> str:
    git = manifest.get("git") or {}
    if not git.get("commit"):
        return "no git revision"
    return f"git `{git['commit'][:12]}`" + (", with changes that were not committed" if git.get("dirty") else "")


def _metrics(run: Path, checkpoint: Checkpoint, tested: Mapping[str, Any]) -> str:
    validated = dict(_validated(run, checkpoint))
    values = {name.removeprefix("test/"): float(value) for name, value in tested.items() if name.startswith("test/")}
    rows = [
        f"| {name} | {_number(validated.get(name))} | {_number(values.get(name))} |"
        for name in dict.fromkeys([*values, *validated])
    ]
    monitored = checkpoint.score.strip(", ").partition(" ")[0]
    note = f"\nThe checkpoint was chosen by `{monitored}`, which flatters its validation values.\n" if monitored else ""
    return "\n".join(["| | validation | test |", "|---|---|---|", *rows, note])


def _validated(run: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, float]]:
    """Yield the last validation values that were logged when the checkpoint was written."""
    if not (run / "metrics.csv").is_file():
        return
    # Loggers count batches that stepped, once each, where several optimizers step too.
    loop = read(checkpoint.path).get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    now = loop.get("_batches_that_stepped", checkpoint.step)
    for key, (steps, values) in read_metrics(run).items():
        # Of equal steps the later row: a resumed run writes some a second time.
        seen = [(step, position) for position, step in enumerate(steps) if step <= now]
        if key.startswith("val/") and seen:
            yield key.removeprefix("val/"), values[max(seen)[1]]


def _recipe(config: Mapping[str, Any]) -> str:
    chosen = {key: config.get(key) for key in _RECIPE}
    chosen["trainer"] = {key: config.get("trainer", {}).get(key) for key in _TRAINER}
    text: str = yaml.safe_dump(_without_places(_without_nothing(redact(chosen))), sort_keys=False, allow_unicode=True)
    return text


def _without_nothing(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _without_nothing(item) for key, item in value.items()}
    return {key: item for key, item in inner.items() if item not in (None, {}, [])}


def _without_places(value: Any) -> Any:
    """Leave of absolute paths their last part: where files lie on one machine is of no use on another."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if isinstance(value, str):
        for path in (PurePosixPath(value), PureWindowsPath(value)):
            if path.is_absolute() or value.startswith("~"):
                return f"…/{path.name}"
    return value


def _loading(module: LightningModule, checkpoint: Checkpoint) -> str:
    place, _, name = class_path(type(module)).rpartition(".")
    return (
        "In this folder, with the code of the project:\n\n"
        f"```python\nfrom {place} import {name}\n\n"
        f'module = {name}.load_from_checkpoint("checkpoints/{checkpoint.path.name}").eval()\n```\n\n'
        "Without it, after `export`:\n\n"
        '```python\nimport torch\n\nmodel = torch.export.load("export/model.pt2").module()\n```\n'
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
