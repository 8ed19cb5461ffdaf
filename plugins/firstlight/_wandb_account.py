"""What is there to log in to W&B with: a mode that was asked for, a host, a key. Nothing here asks a network."""

from __future__ import annotations

import configparser
import netrc
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from firstlight._require import did_you_mean, require

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
_MEANING = {"dryrun": "offline", "run": "online"}  # wandb's older names


def explicit_mode(environ: Mapping[str, str]) -> str | None:
    """Return the mode that ``WANDB_MODE`` asks for, None when it is unset or empty.

    Raises:
        ValueError: it is not one of wandb's modes.
    """
    value = environ.get("WANDB_MODE", "")
    known = value == "" or value in MODES
    require(known, "WANDB_MODE", value, f"one of {', '.join(MODES)}" + did_you_mean(value.lower(), MODES))
    return _MEANING.get(value, value) or None


def configured_host(environ: Mapping[str, str], default: str) -> str:
    """Return the server's URL: from the environment, else from wandb's settings file, else wandb's default."""
    if url := environ.get("WANDB_BASE_URL"):
        return url
    folder = Path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    for file in (Path("wandb") / "settings", folder / "settings"):  # the project's own wins over the user's
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file, encoding="utf-8")
            if url := parser.get("default", "base_url", fallback=""):
                return url
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # wandb itself reads on without such a file
    return default


def has_credentials(host: str, environ: Mapping[str, str], *, also: str = "") -> bool:
    """Say whether wandb will find credentials for ``host`` (in netrc also under another name) without asking.

    An empty ``host`` is one that is not known: any entry of netrc may be its.
    """
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        entries = netrc.netrc(_netrc_file(environ))
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    names = filter(None, (urlsplit(host).netloc, also)) if host else entries.hosts
    return any(bool(found and found[2]) for found in map(entries.authenticators, names))


def _netrc_file(environ: Mapping[str, str]) -> Path:
    if named := environ.get("NETRC"):
        return Path(named).expanduser()
    usual = Path("~/.netrc").expanduser()
    return usual if usual.exists() else Path("~/_netrc").expanduser()
