"""Every file of configs/ loads, reads back the same, goes with the others in any order, and trains."""

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
import yaml

from {{ cookiecutter.package_name }} import main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
OVERLAYS = [config for config in CONFIGS if config.count("/") > 1]
# By test_training.py and test_recipe.py.
TRAINED_ELSEWHERE = ("configs/debug/fast.yaml", "configs/debug/overfit.yaml")
# Each of these excludes the other: they answer the same question.
RIVALS = [{"configs/strategy/ddp.yaml", "configs/strategy/fsdp2.yaml"}]
ONE_BATCH = [
    *["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"],
    *["--trainer.log_every_n_steps", "1", "--trainer.num_nodes", "1"],
    *["--trainer.accelerator", "cpu", "--trainer.devices", "1"],
]
Fit = Callable[..., Path]


def printed(capsys: pytest.CaptureFixture[str], *configs: str) -> str:
    """Return what ``fit --print_config`` says with these files laid over the recipe."""
    with pytest.raises(SystemExit) as stopped:
        main.main(["fit", *(word for config in configs for word in ("--config", config)), "--print_config"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def keys(config: str) -> set[str]:
    """Return the full names of the values that a file sets."""

    def leaves(value: Any, name: str) -> Iterator[str]:
        if isinstance(value, dict) and value:
            for key, part in value.items():
                yield from leaves(part, f"{name}.{key}")
        else:
            yield name

    return set(leaves(yaml.safe_load((ROOT / config).read_text("utf-8")), ""))


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_printed_can_be_read_back(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # configs are found from any folder
    first = printed(capsys, config)
    Path("printed.yaml").write_text(first, "utf-8")
    assert yaml.safe_load(first)["trainer"]["max_epochs"] > 0
    assert printed(capsys, "printed.yaml") == first


def test_overlays_of_different_kinds_share_no_value() -> None:
    """So that it does not matter which of them is named first."""
    for one, other in combinations(OVERLAYS, 2):
        if one.split("/")[1] == other.split("/")[1] == "debug" or {one, other} in RIVALS:
            continue
        assert not keys(one) & keys(other), (one, other)


def test_overlays_go_together_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    for rival in ("ddp", "fsdp2"):
        names = [f"configs/strategy/{name}.yaml" for name in ("gpu", rival, "multi_node")]
        names.append("configs/debug/fast.yaml")
        assert printed(capsys, *names) == printed(capsys, *reversed(names)), rival


@pytest.mark.parametrize("config", [config for config in OVERLAYS if config not in TRAINED_ELSEWHERE])
def test_one_batch_trains(config: str, fit: Fit, tmp_path: Path) -> None:
    """On the CPU and on one machine, since the tests have no other."""
    try:
        run = fit(tmp_path, "--config", "configs/debug/fast.yaml", "--config", config, *ONE_BATCH)
    finally:
        if torch.distributed.is_initialized():  # Lightning leaves it to the end of the process
            torch.distributed.destroy_process_group()
    assert (run / "checkpoints" / "last.ckpt").is_file()
