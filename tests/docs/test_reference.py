"""Every public name is documented, and every key that is logged stands on the page of log keys."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torchmetrics.classification import MulticlassAccuracy

import firstlight
from firstlight.callbacks import GradientMonitor, LearningRateScheduler
from firstlight.layers import GaussianNoise
from firstlight.losses import NTXentLoss
from firstlight.modules import ContrastiveModule, GANModule, VAEModule
from firstlight.regularizers import L1Penalty, L2Penalty
from firstlight.schedules import Constant
from firstlight.tracking import read_metrics
from helpers import fit, loader, supervised

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
ROOMS = sorted(m.name for m in pkgutil.iter_modules(firstlight.__path__) if m.ispkg and not m.name.startswith("_"))
NAMES = [(room, name) for room in ROOMS for name in import_module(f"firstlight.{room}").__all__]


def page(room: str) -> str:
    return (REFERENCE / f"{room}.md").read_text(encoding="utf-8")


def is_ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("firstlight")


def test_the_readme_gives_every_callback_its_role() -> None:
    room = import_module("firstlight.callbacks")
    readme = (REFERENCE.parents[1] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \|[^|]+\|(.*)\|$", readme, re.MULTILINE)
    given = {name: role for role, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert given == {name: getattr(room, name).role for name in room.__all__ if hasattr(getattr(room, name), "role")}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page_a_line_on_the_map_and_a_row_in_the_readme(room: str) -> None:
    assert f".. automodule:: firstlight.{room}\n" in page(room)
    assert f"``firstlight.{room}``" in (firstlight.__doc__ or "")
    readme = (REFERENCE.parents[1] / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `firstlight\.{room}` \|[^|]+\|(.*)\|$", readme, re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"`(\w+)`", row[1])) <= set(import_module(f"firstlight.{room}").__all__)


@pytest.mark.parametrize(("room", "name"), NAMES, ids=lambda value: str(value))
def test_every_public_name_is_on_the_page_of_its_room(room: str, name: str) -> None:
    """automodule shows what has a docstring of its own; torch's are named in the text."""
    thing = getattr(import_module(f"firstlight.{room}"), name)
    hidden = re.search(r":exclude-members: (.*)", page(room))
    excluded = hidden[1].split(", ") if hidden else []
    if not is_ours(thing):
        assert name in excluded
        assert f"`{name}`" in page(room)
        return
    assert name not in excluded
    text = (vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__) or ""
    assert not text.startswith(f"{name}("), "a dataclass's generated docstring says nothing"
    first = text.split("\n\n")[0].rstrip()
    assert first.endswith((".", ":", ";")), f"{room}.{name}: the docstring begins with a sentence"


def test_the_page_of_log_keys_has_every_key_and_no_other(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", page("log-keys"), re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`([^`]+)`", row)]
    # Not numbers, or only there with several optimizers, a scaler or accumulation.
    elsewhere = {"val/predictions", "val/confusion_matrix", "val/samples", "manifest", "lr/<optimizer>/<group>"}
    elsewhere |= {"val/samples_picture"}
    elsewhere |= {"firstlight/verdict", "firstlight/root", "firstlight/findings", "check/<code>"}
    elsewhere |= {"grad/skipped_steps", "grad/window_fraction"}
    # Of modules for other tasks, whose tests look for them.
    metrics = ("perplexity", "bits_per_token", "char_error_rate")
    elsewhere |= {f"{stage}/{metric}" for stage in ("val", "test") for metric in metrics}
    patterns = {key: re.compile(re.sub(r"<(\w+)>", _placeholder, key)) for key in keys if key not in elsewhere}

    module = supervised(penalties=[L1Penalty(1e-4), L2Penalty(1e-4)], metrics={"accuracy": MulticlassAccuracy(4)})
    run = fit(
        module,
        GradientMonitor(),
        LearningRateScheduler(Constant(warmup=4)),
        val=loader(shuffle=False),
        logger=CSVLogger(tmp_path, name="", version=""),
        gradient_clip_val=1.0,
    )
    run.test(module, loader(shuffle=False), verbose=False)
    vae = VAEModule(torch.nn.Linear(8, 4), torch.nn.Linear(2, 8), latent_dim=2, likelihood="gaussian")
    views = ContrastiveModule(torch.nn.Linear(8, 6), torch.nn.Identity(), NTXentLoss(), augmentation=GaussianNoise(0.1))
    gan = GANModule(torch.nn.Linear(2, 8), torch.nn.Linear(8, 1), latent_dim=2, r1=1.0, gradient_penalty=1.0)
    for number, other in enumerate((vae, views, gan)):
        fit(other, val=loader(shuffle=False), logger=CSVLogger(tmp_path / str(number), name="", version=""))
    folders = [tmp_path, *(tmp_path / str(number) for number in range(3))]
    logged = {key for folder in folders for key in read_metrics(folder)} - {"epoch"}

    assert {key for key in logged if not any(p.fullmatch(key) for p in patterns.values())} == set()
    assert {key for key, p in patterns.items() if not any(p.fullmatch(known) for known in logged)} == set()


def _placeholder(found: re.Match[str]) -> str:
    return {"stage": "(train|val|test)", "block": r"[\w.]+"}.get(found[1], r"\w+")
