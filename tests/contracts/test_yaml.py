"""Every part can be written in YAML by class path, and comes back the same: through jsonargparse and from a spec."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import yaml
from contracts.cases import rows
from jsonargparse import ArgumentParser
from torch import nn

from firstlight._spec import build, spec_of
from firstlight.optimizers import LAMB
from firstlight.schedules import Schedule


def parts() -> list[Any]:
    found: list[tuple[str, Any]] = []
    for name, row in rows("losses").items():
        if row.cls is not None:
            found += [(name, row.cls(**variant)) for variant in row.variants]
    for name, row in rows("regularizers").items():
        if row.penalty is not None:
            found.append((name, row.penalty(0.25)))
    found += [(name, row.build(0.25)) for name, row in rows("layers").items()]
    found += [(name, row.build(0.4)) for name, row in rows("mixing").items()]
    for row in rows("schedules").values():
        found += [(type(schedule).__name__, schedule) for schedule in row.variants]
    return [pytest.param(value, id=f"{name}-{number}") for number, (name, value) in enumerate(found)]


def base(part: Any) -> type:
    return nn.Module if isinstance(part, nn.Module) else Schedule if isinstance(part, Schedule) else type(part)


@pytest.mark.parametrize("part", parts())
def test_a_spec_brings_the_same_part_back(part):
    spec = spec_of(part)
    assert spec["init_args"] is not None, "every argument can be read back from an attribute of its name"
    assert spec_of(build(spec, base=base(part), name="part")) == spec


@pytest.mark.parametrize("part", parts())
def test_yaml_brings_the_same_part_back(part):
    text = yaml.safe_dump({"part": spec_of(part)})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--part", type=base(part))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jsonargparse renames its own functions
        parsed = parser.parse_args(["--config", text])
        again = getattr(parser, "instantiate", parser.instantiate_classes)(parsed).part
    assert type(again) is type(part)
    assert spec_of(again) == spec_of(part)


def test_lamb_from_yaml_as_the_modules_take_optimizers():
    spec = yaml.safe_load("{class_path: firstlight.optimizers.LAMB, init_args: {lr: 0.02, weight_decay: 0.1}}")
    made = build(spec, base=torch.optim.Optimizer, name="optimizer")
    optimizer = made([nn.Parameter(torch.ones(3))])
    assert isinstance(optimizer, LAMB)
    assert optimizer.defaults["lr"] == 0.02
