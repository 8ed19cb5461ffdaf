"""What Lightning calls in every ``Trainer()`` where firstlight is installed: nothing, unless ``FIRSTLIGHT`` says more.

Entry points of pyproject.toml lead here. An exception, or anything but a list, would break every Trainer of the
environment, so there is none; and nothing is imported before the environment has asked for it.
"""

from __future__ import annotations

import functools
import os
from typing import Any

KNOWN = ("monitor", "preflight")


def lightning() -> list[Any]:
    """Return the callbacks that ``FIRSTLIGHT`` asks for, for a Trainer of ``lightning.pytorch``."""
    return _asked_for("lightning")


def pytorch_lightning() -> list[Any]:
    """Return the callbacks that ``FIRSTLIGHT`` asks for, for a Trainer of ``pytorch_lightning``."""
    return _asked_for("pytorch_lightning")


def _asked_for(package: str) -> list[Any]:
    asked = os.environ.get("FIRSTLIGHT")
    if not asked:
        return []
    added = []
    for word, build in (("monitor", _monitor), ("preflight", _preflight)):
        try:
            added += build(package) if word in _words(asked) else []
        except Exception as error:
            _say_once(f"firstlight leaves out {word}: {error!r}"[:300])
    return added


def _preflight(package: str) -> list[Any]:
    if package != "lightning":
        _say_once("firstlight leaves out preflight: it takes what is made of lightning.pytorch, not pytorch_lightning")
        return []
    from firstlight.callbacks._preflight_of_environment import PreflightOfEnvironment

    return [PreflightOfEnvironment()]


def _monitor(package: str) -> list[Any]:
    # Two classes, since each package takes its own Callback alone.
    if package == "lightning":
        from firstlight.callbacks._health_summary import HealthSummary

        return [HealthSummary()]
    from lightning_utilities.core import rank_zero

    # Both packages point this shared module to their own logger and warnings; it stays with the one that runs.
    theirs = dict(vars(rank_zero))
    from firstlight.callbacks._health_summary_of_pytorch_lightning import HealthSummaryOfPytorchLightning

    vars(rank_zero).update(theirs)
    return [HealthSummaryOfPytorchLightning()]


def _words(asked: str) -> set[str]:
    words = {word.strip().lower() for word in asked.split(",")} - {""}
    unknown = sorted(words.difference(KNOWN))
    if unknown:
        shown = ", ".join(repr(word[:40]) for word in unknown[:3])
        _say_once(f"FIRSTLIGHT={shown} is not known; known: {', '.join(KNOWN)}, or several with commas")
    return words


@functools.cache
def _say_once(line: str) -> None:
    try:
        from lightning_utilities.core.rank_zero import rank_zero_warn

        rank_zero_warn(line)
    except Exception:  # warnings may be errors here, and nothing may leave this file
        return
