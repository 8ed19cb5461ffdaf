"""The argument parser: no abbreviations, errors in a few lines, a help page that can be read."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from firstlight.cli._help import help_page


class ParseError(Exception):
    """What jsonargparse found wrong, before it is put into words."""


class FirstlightParser(LightningArgumentParser):
    """LightningCLI's parser, which hands its errors up instead of printing its usage."""

    short_help_of: str | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise; inside a nested trial parse, as jsonargparse itself expects."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParseError(message) from ex

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Return the short page of a subcommand, unless all of it was asked for."""
        if self.short_help_of is None:
            return super().format_help()
        return help_page(self.short_help_of, self.description or "", self._actions)
