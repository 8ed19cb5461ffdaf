"""How a W&B run starts, decided before wandb can ask a question or wait for a network.

An explicit ``WANDB_MODE`` wins; else without a key the run is offline; else it is online if the server answers.
"""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from firstlight._wandb_account import configured_host, explicit_mode, has_credentials
from firstlight.tracking._deadline import call_with_deadline

_UPSTREAM = "api.wandb.ai"  # the address that keys were stored under before wandb's default host changed


@dataclass(frozen=True)
class Start:
    """The mode to start in, and why if it is not what a reader would expect."""

    mode: str
    reason: str


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
