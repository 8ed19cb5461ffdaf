"""What is likely to have made a resume other than the unbroken run."""

from __future__ import annotations

from typing import Any

from firstlight._require import some
from firstlight.cli._verify_compare import Difference

_TIED = ("losses", "buffers", "weights", "optimizers")


def causes_of_resume(found: list[Difference], facts: dict[str, Any], resumed: dict[str, Any]) -> list[str]:
    """Return likely causes, the surest first; ``facts`` are those of the unbroken run."""
    if not facts["exact_resume"]:
        return ["exact_resume is null: without it Lightning draws other random numbers and another order of the data"]
    said = list(resumed["differs"])  # ExactResume knows
    if resumed["world_size"] != facts["world_size"]:
        said.append(f"the number of ranks was {facts['world_size']}, is {resumed['world_size']}")
    first = {one.kind: one for one in found if one.step == found[0].step}
    said += _of_data(facts) if "samples" in first else _of_model(first, facts)
    for kind, what in (("callbacks", "state_dict and load_state_dict"), ("checkpoints", "what it saves and loads")):
        if kind in first and not said:
            said.append(f"{some(first[kind].names)} is not restored as it was: look at {what}")
    if not said and set(first) == {"logged values"}:
        said.append(
            f"what logs {some(first['logged values'].names)} begins anew, for want of a state; it trains the same"
        )
    if not said and "random numbers" in first:
        said.append("something draws random numbers at the start of a resumed run, or did not where the run began")
    return list(dict.fromkeys(said))


def causes_of_repeat(found: list[Difference], facts: dict[str, Any]) -> list[str]:
    """Return what makes the same training another one each time."""
    said = []
    if found[0].kind == "samples":
        said += _own(facts)
        said.append("the order of a set, of files in a folder, or of results of threads, which no seed decides")
    if facts["kernels"]:
        said.append(_KERNELS)
    return said or ["a generator that no seed reaches, the clock, or threads decide about it"]


_KERNELS = "kernels of this device that add up in any order: --trainer.deterministic true"


def _own(facts: dict[str, Any]) -> list[str]:
    if not facts["generators"]:
        return []
    return [f"{some(facts['generators'])} is a generator of the data's own, which no checkpoint holds"]


def _of_data(facts: dict[str, Any]) -> list[str]:
    said = _own(facts)
    if facts["reload"] > 1:
        said.append("reload_dataloaders_every_n_epochs counts epochs from the resume on: loaders change at other ones")
    if facts["own_state"]:
        said.append(f"{some(facts['own_state'])} restores its place itself, by its own state_dict")
    if facts["streams"]:
        said.append(f"{some(facts['streams'])} is a stream: its place and its random numbers are its own")
    return said or [f"{some(facts['datasets']) or 'the data'} keeps state of its own that no checkpoint holds"]


def _of_model(first: dict[str, Difference], facts: dict[str, Any]) -> list[str]:
    if not any(kind in first for kind in _TIED):
        return []
    said = []
    if facts["forgotten"]:
        said.append(f"{some(facts['forgotten'])}: buffers with persistent=False, which no checkpoint holds")
    if facts["after_save"]:
        said.append("the module's on_train_batch_end comes after callbacks have saved: what it does is lost by a stop")
    if facts["kernels"]:
        said.append(_KERNELS)
    return said or ["the module, a callback or the data keep state in plain attributes, which no checkpoint holds"]
