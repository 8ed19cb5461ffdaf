"""A parsed configuration as plain values, whatever it holds."""

from __future__ import annotations

from enum import Enum
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace


def plain_values(parser: ArgumentParser, config: Namespace, **options: Any) -> dict[str, Any]:
    """Return what the parser writes; for values that it cannot write, such as an Enum, their plain form."""
    try:
        # By position: the third parameter was renamed between versions.
        values: dict[str, Any] = yaml.safe_load(parser.dump(config, "yaml", False, **options))
    except (ValueError, TypeError, yaml.YAMLError):
        values = _plain(config.clone(with_meta=False).as_dict())
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(inner) for inner in value]
    if isinstance(value, Enum):
        return _plain(value.value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
