"""Stand-ins for a W&B run: one that reports failures instead of raising them, and one that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Attempt(Protocol):
    """Makes a call to the tracker; one that is not patient is given only so long."""

    def __call__(self, action: Callable[[], Any], *, patient: bool = False) -> Any:
        """Return what the call returned, None if it failed."""


# Calls that may rightly take minutes: they copy files, or wait for the server.
_LONG = {"finish", "link_artifact", "link_model", "log_artifact", "log_code", "log_model", "restore", "save"}
_LONG |= {"upsert_artifact", "use_artifact", "use_model", "wait"}


class SilentRun:
    """Takes every call and attribute, and does nothing: what a logger hands out once it is switched off."""

    id = ""
    name = ""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # copy, pickle and friends ask for these
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getitem__(self, key: object) -> Any:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        return None


class GuardedRun:
    """A W&B run, or its config or summary, whose calls go through ``attempt``.

    ``target`` gives the run of the moment: after a failure it may be another one. The stand-in passes for the object
    that it stands for (``isinstance`` included), so ``logger.experiment.log(...)`` in a user's module is as safe as
    the logger itself.
    """

    def __init__(self, target: Callable[[], Any], attempt: Attempt) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_attempt", attempt)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._target())

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target(), name)
        if name in ("config", "summary"):
            return GuardedRun(lambda: getattr(self._target(), name), self._attempt)
        if not callable(value):
            return value

        def guarded(*args: Any, **kwargs: Any) -> Any:
            # By name, not by ``value``: on a second try the run is another one.
            return self._attempt(lambda: getattr(self._target(), name)(*args, **kwargs), patient=name in _LONG)

        return guarded

    def __setattr__(self, name: str, value: Any) -> None:
        self._attempt(lambda: setattr(self._target(), name, value))

    def __getitem__(self, key: Any) -> Any:
        return self._target()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._attempt(lambda: self._target().__setitem__(key, value))

    def __contains__(self, key: object) -> bool:
        return key in self._target()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target())
