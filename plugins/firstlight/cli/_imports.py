"""Which packages a configuration may name classes and functions of, held before anything of them is imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from jsonargparse import _common as jsonargparse_common
from jsonargparse import set_parsing_settings

PACKAGES = ("firstlight", "lightning", "lightning_fabric", "pytorch_lightning", "torch", "torchmetrics")
# Of those, what runs the code that it is given, or fetches it.
_RUNS_CODE = (
    "torch.classes",
    "torch.hub",
    "torch.jit.load",
    "torch.load",
    "torch.ops",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
    "torch.utils.model_zoo",
)


@contextmanager
def only_from(packages: Iterable[str]) -> Iterator[None]:
    """Let jsonargparse import by name from these packages and ``PACKAGES`` only; its settings are the process's."""
    settings = jsonargparse_common.parsing_settings
    before = {name: settings[name] for name in ("import_path_verdicts", "import_paths_enforced")}
    set_parsing_settings(import_path_denylist=["*", *_RUNS_CODE], import_path_allowlist=[*PACKAGES, *packages])
    try:
        yield
    finally:
        settings.update(before)


def may_import(path: str) -> bool:
    """Return whether the settings of this moment let a configuration name ``path``."""
    return jsonargparse_common.denying_import_path_entry(path) is None
