"""Stand-ins for a W&B run: one that reports failures instead of raising them, and one that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Attempt = Callable[[Callable[[], Any]], Any]


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

    It passes for the object that it stands for (``isinstance`` included), so ``logger.experiment.log(...)`` in a
    user's module is as safe as the logger itself.
    """

    def __init__(self, target: Any, attempt: Attempt) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_attempt", attempt)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._target)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name in ("config", "summary"):
            return GuardedRun(value, self._attempt)
        if not callable(value):
            return value

        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self._attempt(lambda: value(*args, **kwargs))

        return guarded

    def __setattr__(self, name: str, value: Any) -> None:
        self._attempt(lambda: setattr(self._target, name, value))

    def __getitem__(self, key: Any) -> Any:
        return self._target[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._attempt(lambda: self._target.__setitem__(key, value))

    def __contains__(self, key: object) -> bool:
        return key in self._target

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target)
