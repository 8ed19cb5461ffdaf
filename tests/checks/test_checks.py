"""Every check on plain values: what sets it off, and what stands on the healthy side of its threshold."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest

from firstlight.checks import (
    CHECKS,
    WATCH_CHECKS,
    Check,
    Diagnosis,
    Evidence,
    Finding,
    Severity,
    diagnose,
    known_checks,
)

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR
NAN = float("nan")


class Row(NamedTuple):
    """Readings that a check speaks up on, how loudly, and changes to them that make it silent, one at a time."""

    severity: Severity
    faulty: dict[str, Any]
    healthy: tuple[dict[str, Any], ...]


FAILS = {"pair/own": 0.95, "pair/own_name": "SGD at 1", "pair/own_steps": 300}
REFERENCE = {"pair/reference": 0.3, "pair/reference_name": "Adam at 0.003", "pair/reference_steps": 50}
UNLIKE = {"labels/p_value": 0.4, "labels/gain": 0.0}
SCHEDULE = {"schedule/peak": 1.0, "schedule/base": 1.0, "schedule/steps": 100, "schedule/planned": 100}
SLOPES = {"activations/dead": {"net.1": 0.95}, "activations/samples": 256}
ROOM = {"folder": "runs", "count": 3, "size": 10, "needed": 30, "free": 29, "at_most": False}
BLOCKS = {"a.weight": 9e-7, "b.weight": 1e-3}

ROWS: dict[str, Row] = {
    "FL001": Row(
        ERROR,
        {"environment/outputs": [["CSVLogger", "a/b", "a: Read-only file system"], ["Other", "c", ""]]},
        ({"environment/outputs": [["CSVLogger", "a/b", ""]]}, {"environment/outputs": []}),
    ),
    "FL002": Row(ERROR, {"environment/room": [ROOM]}, ({"environment/room": [ROOM | {"free": 60}]},)),
    "FL003": Row(
        ERROR, {"environment/lost": [["hyper_parameters.f", "function", "saved"]]}, ({"environment/lost": []},)
    ),
    "FL004": Row(
        ERROR, {"environment/unlogged": [["EarlyStopping", "val/los", True]]}, ({"environment/unlogged": []},)
    ),
    "FL005": Row(WARNING, {"environment/unsynced": [["EarlyStopping", "val/loss"]]}, ({"environment/unsynced": []},)),
    "FL006": Row(WARNING, {"environment/equal_draws": "two workers"}, ({"environment/equal_draws": ""},)),
    "FL007": Row(WARNING, {"environment/tracker": [["WandbLogger", False]]}, ({"environment/tracker": []},)),
    "FL008": Row(
        ERROR,
        {"environment/packages": {"lightning": "2.6.3"}},
        tuple({"environment/packages": found} for found in ({"lightning": "2.6.6"}, {"torch": "2.6.3"}, {})),
    ),
    "FL101": Row(ERROR, {"data/nonfinite": 1}, ({"data/nonfinite": 0},)),
    "FL102": Row(
        ERROR,
        {"inputs/std": 10.1, "inputs/mean": 0.0, "pair/own": 0.6},
        ({"inputs/std": 10.0}, {"inputs/std": 0.02}, {"inputs/std": NAN}),
    ),
    "FL103": Row(WARNING, {"inputs/column_ratio": 101.0}, ({"inputs/column_ratio": 100.0},)),
    "FL104": Row(
        ERROR,
        {"targets/std": 10.1, "targets/mean": 0.0, "loss/constant": 100.0, "pair/own_loss": 51.0},
        ({"targets/std": 10.0}, {"targets/std": 0.01}, {"targets/std": 1.0, "targets/mean": 29.0}),
    ),
    "FL105": Row(ERROR, {"targets/label_range": [1, 10, 10]}, ({"targets/label_range": [0, 9, 10]},)),
    "FL106": Row(ERROR, {"targets/classes": 1, "data/samples": 100}, ({"targets/classes": 2}, {"data/samples": 99})),
    "FL107": Row(
        WARNING,
        {"targets/least_share": 0.09, "loss/rare_weight": 1.9},
        ({"targets/least_share": 0.1}, {"loss/rare_weight": 2.0}),
    ),
    "FL108": Row(ERROR, {"data/order_ratio": 0.19}, ({"data/order_ratio": 0.5},)),
    "FL109": Row(
        WARNING,
        {"splits/shift": 0.51, "splits/ratio": 1.0},
        (
            {"splits/shift": 0.5},
            {"splits/shift": 0.5, "splits/ratio": 2.9},
            {"splits/shift": 0.5, "splits/ratio": 0.35},
        ),
    ),
    "FL110": Row(
        ERROR,
        {"splits/shared": 0.011, "splits/unique": 1.0, "inputs/elements": 8},
        ({"splits/shared": 0.01}, {"splits/unique": 0.9}, {"inputs/elements": 7}),
    ),
    "FL111": Row(
        ERROR,
        UNLIKE | {"labels/held_out_gain": 0.01},
        ({"labels/held_out_gain": 0.02}, {"labels/p_value": 0.01}),
    ),
    "FL112": Row(
        WARNING,
        {"inputs/duplicate_share": 0.51, "inputs/elements": 8},
        ({"inputs/duplicate_share": 0.5}, {"inputs/elements": 7}),
    ),
    "FL113": Row(ERROR, {"targets/copy_inputs": True}, ({"targets/copy_inputs": False},)),
    "FL201": Row(ERROR, {"loss/finite": False}, ({"loss/finite": True},)),
    "FL202": Row(ERROR, SLOPES, ({"activations/dead": {"net.1": 0.94}},)),
    "FL203": Row(
        ERROR, {"activations/saturated": {"net.1": 0.51}, "pair/own": 0.6}, ({"activations/saturated": {"net.1": 0.5}},)
    ),
    "FL204": Row(
        ERROR,
        {"model/identical_rows": [], "model/zero": ["net.0.weight"], "pair/own": 1.0},
        ({"pair/reached": ["net.0.weight"]}, {"pair/reference_reached": ["net.0.weight"]}, {"model/zero": []}),
    ),
    "FL205": Row(
        ERROR,
        {"network/variation": 9e-7, "pair/own": 0.6},
        ({"network/variation": 1e-6}, {"pair/own": 0.5}),
    ),
    "FL206": Row(ERROR, {"network/curvature": 9e-5}, ({"network/curvature": 1e-4},)),
    "FL207": Row(ERROR, {"network/mixing": 1.1e-4}, ({"network/mixing": 1e-4},)),
    "FL208": Row(
        ERROR,
        {"network/eval_difference": 1.1e-5},
        ({"network/eval_difference": 1e-5}, {"plan/precision": "bf16-mixed"}),
    ),
    "FL209": Row(ERROR, {"network/look_ahead": 1.1e-4}, ({"network/look_ahead": 1e-4},)),
    "FL210": Row(ERROR, {"network/stuck_statistics": ["net.1"]}, ({"network/stuck_statistics": []},)),
    "FL211": Row(WARNING, {"model/in_eval_mode": ["net.0"], "model/in_eval": True}, ({"model/in_eval_mode": []},)),
    "FL212": Row(ERROR, {"model/unregistered": ["blocks[0]"]}, ({"model/unregistered": []},)),
    "FL213": Row(ERROR, FAILS | {"pair/initialized": 0.49}, ({"pair/initialized": 0.5},)),
    "FL214": Row(
        ERROR,
        {"model/parameters": 1000, "model/trainable": 9, "pair/own": 0.95},
        ({"model/trainable": 10}, {"pair/own": 0.9}, {"pair/reference": 0.9}),
    ),
    "FL215": Row(ERROR, {"model/step_error": "RuntimeError: shapes"}, ({"model/step_error": ""},)),
    "FL301": Row(
        ERROR,
        {"loss/initial": 3.1, "loss/constant": 1.0},
        (
            {"loss/initial": 2.0},
            {"loss/initial": NAN},
            {"loss/initial": 0.3, "loss/constant": 0.1},
            {"loss/level": 1.6},
        ),
    ),
    "FL302": Row(ERROR, {"loss/given": "softmax"}, ({"loss/given": ""}, {"loss/given": "perhaps sigmoid"})),
    "FL303": Row(ERROR, {"loss/reachable": 0.21}, ({"loss/reachable": 0.2},)),
    "FL304": Row(ERROR, {"loss/unbounded": True}, ({"loss/unbounded": False},)),
    "FL305": Row(
        ERROR,
        {"loss/coupling": 1.1e-4, "pair/own": 0.91},
        ({"loss/coupling": 1e-4}, {"loss/doubling": 2.0}),
    ),
    "FL306": Row(ERROR, FAILS | REFERENCE | {"loss/doubling": 1.96}, ({"loss/doubling": 1.94},)),
    "FL307": Row(ERROR, {"loss/connected": False}, ({"loss/connected": True},)),
    "FL308": Row(
        ERROR,
        {"loss/offsets": [[1, 0], [1, 0], [1, 0]]},
        ({"loss/offsets": [[0, 0]] * 3}, {"loss/offsets": [[0, -1]] * 3, "loss/own_targets": False}),
    ),
    "FL309": Row(
        WARNING,
        {"network/reach": [0.0, None], "loss/takes_logits": True},
        ({"network/reach": [-0.1, None]}, {"loss/takes_logits": False}, {"network/reach": [None, None]}),
    ),
    "FL310": Row(
        ERROR,
        {"loss/initial": 2.1, "loss/task": 1.0, "pair/task_end": 0.91, "pair/own_loss": 1.0},
        ({"loss/initial": 2.0}, {"pair/task_end": 0.9}, {"pair/own_loss": 1.05}, {"loss/task": None}),
    ),
    "FL401": Row(
        ERROR, {"gradient/none": ["a"]}, ({"gradient/none": []}, {"pair/reached": ["a"]}, {"optimizer/missing": ["a"]})
    ),
    "FL402": Row(
        ERROR,
        {"gradient/relative": {"a": 0.9e-5, "b": 1.0, "c": 1.0}, "pair/own": 0.6},
        (
            {"gradient/relative": {"a": 1.1e-5, "b": 1.0, "c": 1.0}},
            {"gradient/later": {"a": 0.1, "b": 1.0, "c": 1.0}},
            {"pair/own": 0.5},
            {"gradient/relative": {"a": 0.9e-5, "b": 1.0}},
        ),
    ),
    "FL403": Row(ERROR, {"gradient/stale": ["a"]}, ({"gradient/stale": []},)),
    "FL404": Row(
        ERROR,
        FAILS | REFERENCE | {"gradient/clip_norms": [1.0, 1.0, 1.0], "plan/clip": 0.049},
        ({"plan/clip": 0.05}, {"plan/clip": None}, {"gradient/clip_norms": []}),
    ),
    "FL405": Row(ERROR, {"gradient/zero": ["a"]}, ({"gradient/zero": []}, {"pair/reference_reached": ["a"]})),
    "FL406": Row(
        ERROR, {"gradient/nonfinite": ["a"], "loss/finite": True}, ({"gradient/nonfinite": []}, {"loss/finite": False})
    ),
    "FL501": Row(ERROR, {"optimizer/missing": [], "optimizer/foreign": 2}, ({"optimizer/foreign": 0},)),
    "FL502": Row(
        ERROR,
        FAILS | {"update/ascent": [0.21, 1.0, 0.9]},
        ({"update/ascent": [0.2, 1.0, 0.9]}, {"pair/own": 0.9}, {"update/ascent": []}),
    ),
    "FL503": Row(
        ERROR,
        FAILS | REFERENCE | {"update/ratio": 0.11},
        ({"update/ratio": 0.1}, {"pair/own": 0.9}, {"pair/reference": 0.9}, {"pair/initialized": 0.4}),
    ),
    "FL504": Row(
        ERROR,
        FAILS | REFERENCE | {"update/ratio": 0.9e-6},
        ({"update/ratio": 1e-6}, {"pair/own": 0.9}, {"pair/undecayed": 0.4}),
    ),
    "FL505": Row(ERROR, SCHEDULE | {"schedule/rest": 0.9e-3}, ({"schedule/rest": 1e-3}, {"schedule/steps": 19})),
    "FL506": Row(ERROR, {"optimizer/decay": 5.0, "pair/undecayed": 0.49}, ({"pair/undecayed": 0.5},)),
    "FL507": Row(
        ERROR,
        {"update/still": ["a"], "pair/reached": ["a"], "pair/own_steps": 3},
        (
            {"update/still": []},
            {"pair/reached": []},
            {"gradient/share": {"a": 1e-4}},
            {"pair/own_steps": 2},
            {"optimizer/missing": ["a"]},
        ),
    ),
    "FL508": Row(
        ERROR,
        {"update/blocks": BLOCKS, "update/ratio": 1e-3, "pair/reached": ["a.weight"]},
        (
            {"update/blocks": BLOCKS | {"a.weight": 1e-6}},
            {"update/blocks": {"a.weight": 9e-7}, "update/ratio": 1e-5},
            {"pair/reached": []},
        ),
    ),
    "FL601": Row(ERROR, FAILS | REFERENCE, ({"pair/own": 0.9}, {"pair/reference": 0.5})),
    "FL602": Row(
        ERROR,
        FAILS
        | REFERENCE
        | {"pair/reference": 0.91, "pair/own_loss": 0.92, "pair/reference_loss": 0.91}
        | {"pair/constant": 1.0, "loss/floor": 0.0},
        ({"pair/own": 0.9}, {"pair/reference": 0.9}, {"loss/floor": 0.11}),
    ),
    "FL603": Row(INFO, {"pair/own": 0.5, "pair/own_steps": 9}, ({"pair/own": 0.49}, {"pair/own": 0.91})),
    "FL604": Row(ERROR, {"pair/without_dropout": 0.49}, ({"pair/without_dropout": 0.5}, {"pair/reference": 0.6})),
    "FL611": Row(ERROR, {"watch/nonfinite_step": 0}, ({"watch/nonfinite_step": None},)),
    "FL612": Row(WARNING, {"watch/fall": 0.981, "watch/steps": 300}, ({"watch/fall": 0.98}, {"watch/fall": NAN})),
    "FL613": Row(WARNING, {"watch/spikes": [7, 8, 9]}, ({"watch/spikes": [7, 8]},)),
    "FL614": Row(
        INFO,
        {"watch/val_rise": 0.051, "watch/train_falls": True},
        ({"watch/val_rise": 0.05}, {"watch/train_falls": False}),
    ),
    "FL615": Row(
        WARNING,
        {"watch/ratios": [0.11] * 20, "watch/fall": 0.91},
        ({"watch/ratios": [0.11] * 19}, {"watch/ratios": [0.1] + [0.11] * 19}, {"watch/ratios": [1e-6] * 20}),
    ),
    "FL616": Row(
        WARNING,
        {"watch/clip_share": 0.51, "watch/clip_kept": 0.049, "watch/fall": 0.91},
        ({"watch/clip_share": 0.5},),
    ),
}

# The same reading at another severity: said more softly, or louder, for a reason that the docstring gives.
OTHER_SEVERITIES = [
    ("FL002", {"environment/room": [ROOM | {"free": 30}]}, WARNING),
    ("FL002", {"environment/room": [ROOM | {"free": 59}]}, WARNING),
    ("FL002", {"environment/room": [ROOM | {"at_most": True}]}, WARNING),
    ("FL003", {"environment/lost": [["hyper_parameters.root", "pathlib.PosixPath", "loaded"]]}, WARNING),
    ("FL004", {"environment/unlogged": [["EarlyStopping", "val/los", False]]}, WARNING),
    ("FL007", {"environment/tracker": [["SafeWandbLogger", True]]}, INFO),
    ("FL008", {"environment/packages": {"lightning": "2.6.5"}}, ERROR),
    ("FL008", {"environment/packages": {"pytorch-lightning": "2.6.2"}}, WARNING),
    ("FL102", {"pair/own": 0.5}, INFO),
    ("FL102", {"inputs/std": 0.019}, ERROR),
    ("FL102", {"pair/own": 0.5, "loss/initial": 3.1, "loss/constant": 1.0}, ERROR),
    ("FL104", {"pair/own_loss": 50.0}, INFO),
    ("FL104", {"targets/std": 1.0, "targets/mean": 31.0}, ERROR),
    ("FL105", {"targets/label_range": [-1, 9, 10]}, ERROR),
    ("FL108", {"data/order_ratio": 0.49}, WARNING),
    ("FL109", {"splits/ratio": 10.1}, ERROR),
    ("FL109", {"splits/shift": 0.0, "splits/ratio": 3.1}, WARNING),
    ("FL111", {"labels/val_p_value": 0.005, "labels/val_gain": 0.06, "labels/held_out_gain": 1.0}, ERROR),
    ("FL112", {"inputs/constant_share": 1.0}, ERROR),
    ("FL203", {"pair/own": 0.5}, INFO),
    ("FL205", {"network/variation": 9e-4, "pair/own": 0.91}, ERROR),
    ("FL206", {"network/bottleneck": True}, INFO),
    ("FL211", {"model/in_eval": False}, INFO),
    ("FL301", {"loss/initial": 2.9}, INFO),
    ("FL302", {"loss/given": "perhaps sigmoid", "network/reach": [0.0, 1.0]}, ERROR),
    ("FL305", {"pair/own": 0.9}, INFO),
    ("FL305", {"pair/own": 0.5, "loss/shares_of_batch": True}, ERROR),
    ("FL305", {"pair/own": 0.5, "loss/broadcast": [[8], [8, 1]]}, INFO),
    ("FL305", {"pair/own": 0.5, "loss/broadcast": [[8], [8, 1]], "loss/pairs_all": True}, ERROR),
    ("FL306", {"pair/own": 0.5}, INFO),
    ("FL404", {"pair/own": 0.5}, INFO),
    ("FL503", {"pair/own": 0.85, "pair/better_factor": 0.1}, WARNING),
    ("FL504", {"pair/own": 0.85, "pair/better_factor": 10.0}, INFO),
    ("FL505", {"schedule/rest": 0.4, "schedule/peak": 0.49}, ERROR),
    ("FL613", {"watch/spikes": [7], "watch/spike_stays": True}, WARNING),
    ("FL615", {"watch/ratios": [0.9e-6] * 20}, WARNING),
    ("FL615", {"watch/fall": 0.9}, INFO),
    ("FL616", {"watch/clip_kept": 0.05}, INFO),
]

every_check = pytest.mark.parametrize("check", known_checks().values(), ids=lambda check: f"{check.code}-{check.name}")


def found_by(check: Check, readings: dict[str, Any]) -> list[Finding]:
    evidence = Evidence(readings)
    assert check.missing(evidence) is None
    return check(evidence)


@pytest.mark.parametrize(
    ("relative", "name", "where"),
    [
        ({"a": 2e5, "b": 30.0, "c": 0.1}, "exploding", "a"),
        ({"a": 1e-7, "b": 1e-3, "c": 0.1}, "vanishing", "a"),
        ({"head": 0.1, "b": 1e-3, "c": 1e-7}, "vanishing", "c"),  # declared in another order than it runs
        ({"a": 0.1, "b": 1e3, "c": 2e5}, "vanishing", "a"),  # a loss that is summed over very many
    ],
)
def test_gradients_that_blow_up_are_told_from_those_that_die(relative, name, where):
    (found,) = found_by(known_checks()["FL402"], {"gradient/relative": relative})
    assert (found.name, found.where) == (name, where)


def test_the_table_leaves_no_check_out():
    assert ROWS.keys() == known_checks().keys() == {check.code for check in (*CHECKS, *WATCH_CHECKS)}


@every_check
def test_a_fault_is_found_at_its_severity(check: Check):
    row = ROWS[check.code]
    (found,) = found_by(check, row.faulty)
    assert (found.severity, found.code, found.name) == (row.severity, check.code, check.name)
    assert found.message
    assert found.advice
    assert found.why == check.why


@every_check
def test_the_healthy_side_of_each_threshold_is_silent(check: Check):
    row = ROWS[check.code]
    assert row.healthy
    for change in row.healthy:
        assert found_by(check, row.faulty | change) == [], change


@pytest.mark.parametrize(("code", "change", "severity"), OTHER_SEVERITIES)
def test_what_is_known_besides_sets_the_severity(code: str, change: dict[str, Any], severity: Severity):
    (found,) = found_by(known_checks()[code], ROWS[code].faulty | change)
    assert found.severity == severity


def test_too_few_samples_say_nothing_of_dead_units():
    check, few = known_checks()["FL202"], Evidence(SLOPES | {"activations/samples": 63})
    assert check.missing(few) == "63 samples are too few to call a unit dead"
    assert check(few) == []
    assert check.missing(Evidence(SLOPES | {"activations/samples": 64})) is None


@every_check
def test_each_missing_need_is_told_with_its_reason(check: Check):
    assert check.needs
    for key in check.needs:
        evidence = Evidence({name: value for name, value in ROWS[check.code].faulty.items() if name != key})
        evidence.add(dict.fromkeys(set(check.needs) - {key}))
        assert check.missing(evidence) == f"nothing measured {key}"
        evidence.skip(f"{key.partition('/')[0]}/", "the whole probe")
        assert check.missing(evidence) == "the whole probe"
        evidence.skip(key, "this very reading")
        assert check.missing(evidence) == "this very reading"


@every_check
def test_a_check_says_what_it_is(check: Check):
    text = inspect.getdoc(type(check)) or ""
    assert "\nRule: " in text
    assert "\nKnown false alarms: " in text
    assert check.why
    assert check.title
    assert isinstance(check.rank, int)


def test_codes_and_names_are_given_once():
    checks = {type(check) for check in (*CHECKS, *WATCH_CHECKS)}
    assert len({kind.code for kind in checks}) == len({kind.name for kind in checks}) == len(checks)
    assert [check.code for check in CHECKS] == sorted(check.code for check in CHECKS)


@pytest.mark.parametrize(("version", "bad"), [("2.6.1", ""), ("2.6.2", "credentials"), ("2.6.4", "CVE"), ("2.10", "")])
def test_bad_releases_by_version(version: str, bad: str):
    package = "pytorch-lightning" if version == "2.6.1" else "lightning"
    said = [found.message for found in known_checks()["FL008"](Evidence({"environment/packages": {package: version}}))]
    assert bool(said) == bool(bad)
    assert all(bad in text for text in said)


def finding(code: str, severity: Severity) -> Finding:
    return Finding(code, severity, "", 1.0, 0.0, "said", "do")


def test_severity_comes_before_rank_and_rank_before_code():
    ranks = {"FL1": 9, "FL2": 1, "FL3": 5, "FL4": 5}
    diagnosis = diagnose(
        [
            finding("FL2", WARNING),
            finding("FL1", ERROR),
            finding("FL4", ERROR),
            finding("FL3", ERROR),
            finding("FL9", INFO),
        ],
        ranks,
    )
    assert diagnosis.root is not None
    assert diagnosis.root.code == "FL3"
    assert [found.code for found in diagnosis.symptoms] == ["FL4", "FL1"]
    assert [found.code for found in diagnosis.others] == ["FL2", "FL9"]


def test_the_environment_and_the_learning_explain_nothing_of_each_other():
    ranks = {check.code: check.rank for check in CHECKS}
    learning, folder = [finding("FL302", ERROR), finding("FL503", ERROR)], [finding("FL001", ERROR)]
    diagnosis = diagnose([*folder, *learning], ranks)
    assert diagnosis.root == learning[0]
    assert diagnosis.symptoms == (learning[1],)
    assert diagnosis.others == (folder[0],)
    diagnosis = diagnose([finding("FL109", WARNING), *folder, finding("FL003", ERROR)], ranks)
    assert diagnosis.root == folder[0]
    assert diagnosis.symptoms == ()
    assert [found.code for found in diagnosis.others] == ["FL003", "FL109"]


def test_a_leaking_split_is_not_why_nothing_is_learned():
    ranks = {check.code: check.rank for check in CHECKS}
    assert ranks["FL110"] < ranks["FL505"], "the rank alone would choose it"
    leak, schedule = finding("FL110", ERROR), finding("FL505", ERROR)
    assert diagnose([leak, schedule], ranks) == Diagnosis(schedule, (), (leak,))
    assert diagnose([leak], ranks) == Diagnosis(leak)


def test_a_warning_explains_no_other_and_a_fact_is_no_root():
    diagnosis = diagnose([finding("FL2", WARNING), finding("FL1", WARNING)], {"FL1": 1, "FL2": 2})
    assert diagnosis.root is not None
    assert (diagnosis.root.code, diagnosis.symptoms, len(diagnosis.others)) == ("FL1", (), 1)
    facts = diagnose([finding("FL1", INFO)], {})
    assert (facts.root, len(facts.others)) == (None, 1)
    assert diagnose([], {}).root is None


def test_a_finding_must_be_told():
    with pytest.raises(ValueError, match="message and advice"):
        CHECKS[0].finding(ERROR, value=1.0, threshold=0.0, message="", advice="do")
