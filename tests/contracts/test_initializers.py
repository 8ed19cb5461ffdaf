"""Laws that every initializer keeps, over all rows of the table."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.initializers_cases import ROWS, Row, seeded, tensors_of

from firstlight._spec import build, spec_of
from firstlight.initializers import InitPlan, InitReport, InitRule

FILLERS = [pytest.param(row, id=name) for name, row in ROWS.items() if row.fill is not None]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def made(row: Row, dtype: torch.dtype = torch.float32):
    assert row.make is not None
    torch.manual_seed(0)
    return row.make(dtype)


@pytest.mark.parametrize("row", FILLERS)
def test_filled_in_place_and_the_same_back(row):
    target = made(row)
    before = {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors_of(target).items()}
    back = row.fill(target, seeded())
    assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors_of(target).items()} == before
    assert back is target if row.same_back else isinstance(back, InitReport)
    for tensor in tensors_of(target).values():
        assert tensor.is_leaf
        assert tensor.grad is None
        assert torch.is_tensor(target) or tensor.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", FILLERS)
def test_the_variance_is_the_one_claimed(row, dtype):
    target = made(row, dtype)
    row.fill(target, seeded())
    found = tensors_of(target)
    assert row.std
    for name, std in row.std.items():
        assert found[name].dtype == dtype
        assert float(found[name].detach().double().var(correction=0)) == pytest.approx(std**2, rel=0.05), name


@pytest.mark.parametrize("row", [case for case in FILLERS if not case.values[0].same_back])
def test_reports_tell_the_truth(row):
    target = made(row)
    report = row.fill(target, seeded())
    assert report.initialized
    for line in report.initialized:
        assert line.target_std is not None
        if line.target_std:
            assert line.measured_variance == pytest.approx(line.target_variance, rel=0.1), line.name
    assert all(line.name in str(report) for line in report.rows)


@pytest.mark.parametrize("row", FILLERS)
def test_same_generator_same_draw_and_the_global_one_untouched(row):
    draws = []
    for seed in (5, 5, 6):
        target = made(row)
        state = torch.random.get_rng_state()
        row.fill(target, seeded(seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        draws.append(torch.cat([tensors_of(target)[name].detach().flatten() for name in row.std]))
    assert torch.equal(draws[0], draws[1])
    assert not draws[0].std() or torch.equal(draws[0], draws[2]) == ("bias" in row.std)


@pytest.mark.parametrize("record", [ROWS["InitPlan"].record, ROWS["InitRule"].record], ids=["InitPlan", "InitRule"])
def test_plans_are_plain_values(record):
    spec = spec_of(record)
    assert isinstance(spec, dict)
    assert build(spec, base=type(record), name="plan") == record


def test_plans_are_read_from_yaml():
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--plan", type=InitPlan)
    text = "{rules: [{scheme: he, kinds: [conv], fan: fan_out}, {scheme: normal, std: 0.02}]}"
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # older jsonargparse
    plan = instantiate(parser.parse_args(["--plan", text])).plan
    wanted = InitPlan([InitRule("he", kinds=["conv"], fan="fan_out"), InitRule("normal", std=0.02)])
    assert plan == wanted
    by_path = {"class_path": "firstlight.initializers.InitRule", "init_args": {"scheme": "normal", "std": 0.02}}
    assert InitPlan([by_path]).rules == wanted.rules[1:]


def test_records_hold_what_they_were_given():
    row = ROWS["InitRow"].record
    assert row.target_variance == 0.25
    assert row.measured_variance == pytest.approx(0.49**2)
    assert math.isclose(ROWS["gain"].record, 1.53353, rel_tol=1e-5)
    assert str(ROWS["InitReport"].record).endswith("warning: a warning")
