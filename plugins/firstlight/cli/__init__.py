"""The command line: ``FirstlightCLI`` turns a module and a data module into ``fit validate test predict check``.

``main`` is the ``firstlight`` command, for set-ups without one of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstlight.cli._main import main

if TYPE_CHECKING:
    from firstlight.cli._cli import FirstlightCLI

__all__ = ["FirstlightCLI", "main"]


def __getattr__(name: str) -> Any:
    """Import Lightning when its command line is asked for: ``firstlight explain`` needs none of it."""
    if name == "FirstlightCLI":
        from firstlight.cli._cli import FirstlightCLI

        return FirstlightCLI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
