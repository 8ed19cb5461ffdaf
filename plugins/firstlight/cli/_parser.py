"""The argument parser: no abbreviations, errors in a few lines."""

from __future__ import annotations

from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser


class ParseError(Exception):
    """What jsonargparse found wrong, before it is put into words."""


class FirstlightParser(LightningArgumentParser):
    """LightningCLI's parser, which hands its errors up instead of printing its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise; inside a nested trial parse, as jsonargparse itself expects."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParseError(message) from ex
