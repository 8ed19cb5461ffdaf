"""The command line: ``FirstlightCLI`` turns a module and a data module into ``fit validate test predict``."""

from firstlight.cli._cli import FirstlightCLI

__all__ = ["FirstlightCLI"]
