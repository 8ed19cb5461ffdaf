"""How a W&B run starts, decided before wandb can ask a question or wait for a network.

An explicit ``WANDB_MODE`` wins; else without a key the run is offline; else it is online if the server answers.
"""

from __future__ import annotations

import configparser
import netrc
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from firstlight._require import did_you_mean, require
from firstlight.tracking._deadline import call_with_deadline

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
_MEANING = {"dryrun": "offline", "run": "online"}  # wandb's older names
_UPSTREAM = "api.wandb.ai"  # the address that keys were stored under before wandb's default host changed


@dataclass(frozen=True)
class Start:
    """The mode to start in, and why if it is not what a reader would expect."""

    mode: str
    reason: str


def explicit_mode(environ: Mapping[str, str]) -> str | None:
    """Return the mode that ``WANDB_MODE`` asks for, None when it is unset or empty.

    Raises:
        ValueError: it is not one of wandb's modes.
    """
    value = environ.get("WANDB_MODE", "")
    known = value == "" or value in MODES
    require(known, "WANDB_MODE", value, f"one of {', '.join(MODES)}" + did_you_mean(value.lower(), MODES))
    return _MEANING.get(value, value) or None


def decide(*, offline: bool, default_host: str, environ: Mapping[str, str], timeout: float) -> Start:
    """Choose the mode of a new run. It asks nothing, and waits for the network no longer than ``timeout`` seconds."""
    explicit = explicit_mode(environ)
    if explicit in ("offline", "disabled"):
        return Start(explicit, f"WANDB_MODE={environ['WANDB_MODE']}")
    if explicit is None and offline:
        return Start("offline", "offline=True")
    host = configured_host(environ, default_host)
    if not has_credentials(host, environ, also=_UPSTREAM if host == default_host else ""):
        asked = f"WANDB_MODE={explicit}, but " if explicit else ""
        return Start("offline", f"{asked}no API key in WANDB_API_KEY or netrc for {urlsplit(host).netloc}")
    trouble = unreachable(host, timeout)
    if trouble:
        return Start("offline", f"{urlsplit(host).netloc} cannot be reached: {trouble}")
    return Start(explicit or "online", "")


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
    """Say whether wandb will find credentials for ``host`` (in netrc also under another name) without asking."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        entries = netrc.netrc(_netrc_file(environ))
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    names = filter(None, (urlsplit(host).netloc, also))
    return any(bool(found and found[2]) for found in map(entries.authenticators, names))


def _netrc_file(environ: Mapping[str, str]) -> Path:
    if named := environ.get("NETRC"):
        return Path(named).expanduser()
    usual = Path("~/.netrc").expanduser()
    return usual if usual.exists() else Path("~/_netrc").expanduser()


def unreachable(url: str, timeout: float) -> str:
    """Return why no connection to ``url`` can be made, an empty string when one can or a proxy is in between.

    wandb waits some 100 s for a server that refuses; a refusal is known at once.
    """
    parts = urlsplit(url)
    name = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(name):
        return ""
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        # In a thread, because resolving a name takes as long as the resolver likes.
        call_with_deadline(lambda: socket.create_connection((name, port), timeout).close(), timeout)
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return ""
