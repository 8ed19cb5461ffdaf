"""``python -m firstlight.cli._of_targets MODULE DATA fit ...``: a command line of what no project's program names."""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

from jsonargparse.typing import class_from_function
from lightning.pytorch import LightningDataModule, LightningModule

from firstlight.cli._cli import FirstlightCLI
from firstlight.cli._errors import UsageError
from firstlight.cli._target import named


def main() -> None:
    """Run FirstlightCLI with what the first two arguments name; an empty one is data of the module's own."""
    module, data, *argv = sys.argv[1:]
    try:
        kinds = [_kind(module, "TARGET", LightningModule)]
        if data:
            kinds.append(_kind(data, "--data", LightningDataModule))
        elif kinds[0].train_dataloader is LightningModule.train_dataloader and isinstance(named(module, ""), type):
            raise UsageError(f"{module} has no train_dataloader of its own", "give --data TARGET")
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.code) from None
    # A root without configurations: a default.yaml in the working directory is of some other command line.
    FirstlightCLI(*kinds, project_root=Path(__file__).parent, args=argv)


def _kind(target: str, option: str, wanted: type) -> Any:
    """Return a class; a function becomes one, whose annotation nobody needs to write.

    Raises:
        UsageError: It is neither: each training builds its own.
    """
    found = named(target, option)
    if isinstance(found, type) and issubclass(found, wanted):
        return found
    if not inspect.isfunction(found):
        raise UsageError(
            f"{option} must name a {wanted.__name__}, or a function that returns one; {target} is {_said(found)}",
            "each training builds its own",
        )
    return class_from_function(found if wanted is LightningModule else _with_loaders(found), wanted)


def _said(found: Any) -> str:
    return f"the class {found.__qualname__}" if isinstance(found, type) else f"a {type(found).__qualname__}"


def _with_loaders(function: Any) -> Any:
    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        return made if isinstance(made, LightningDataModule) else _Loader(made)

    return build


class _Loader(LightningDataModule):
    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader


if __name__ == "__main__":
    main()
