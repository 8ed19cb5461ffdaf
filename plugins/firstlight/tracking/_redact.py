"""Secrets kept out of what is logged: by the name of their key, and inside URLs."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"

_SECRET_KEY = re.compile(
    r"token|secret|passw(or)?d|passphrase|api_?key|access_?key|private_?key|credential", re.IGNORECASE
)
# Words of our own field that only look secret: the sizes, ids and names of tokens and tokenizers.
_HARMLESS_KEY = re.compile(
    r"tokeni[sz]|token_?(id|dim|len|length|count|type|size|weight|embed)|tokens(_|$)|num_?token|(max|min|per|n)_?tokens?"
    r"|^(pad|bos|eos|unk|cls|sep|mask|special)_?token$",
    re.IGNORECASE,
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_FILE = re.compile(r"(?:---|\+\+\+) \S*?([^/\s]+)$")
# key = "value", "key": "value" and key: str = "value"; and, where no code is written, key=value and key: value.
_QUOTED = re.compile(
    r"""(?P<key>[\w.-]+)(?P<sign>["']?\s*(?::[^=:"']*=|[:=])\s*[rbfu]?)(?P<quote>["'])(?:.*?)(?P=quote)"""
)
_BARE = re.compile(r"(?P<key>[\w.-]+)(?P<sign>\s*[:=]\s*)[^\s\"'#].*")


def is_secret_key(key: str) -> bool:
    """Say whether a key names a secret.

    >>> [key for key in ("hf_token", "API-KEY", "max_tokens", "tokenizer", "password") if is_secret_key(key)]
    ['hf_token', 'API-KEY', 'password']
    """
    word = re.sub(r"[-\s]", "_", key.rsplit(".", 1)[-1])
    return bool(_SECRET_KEY.search(word)) and not _HARMLESS_KEY.search(word)


def redact(value: Any) -> Any:
    """Return a copy of a config in which the values of secret keys, and logins in URLs, read ``***``.

    Keys that contain token, secret, password or api_key (and their kin) are secret at any depth; what is counted in
    tokens (``max_tokens``) or names a tokenizer is not. An empty value stays: it hides nothing and helps debugging.

    >>> redact({"lr": 0.1, "hub": {"api_key": "sk-1", "url": "https://me:pw@host/x"}, "max_tokens": 512})
    {'lr': 0.1, 'hub': {'api_key': '***', 'url': 'https://***@host/x'}, 'max_tokens': 512}
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {k: _mask(v) if is_secret_key(str(k)) else redact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(v) for v in value] if isinstance(value, list) else tuple(redact(v) for v in value)
    return _URL_LOGIN.sub(MASK, value) if isinstance(value, str) else value


def redact_argv(argv: Sequence[str]) -> list[str]:
    """Return command line arguments with the values of secret options masked.

    >>> redact_argv(["--api-key=sk-1", "--hf_token", "abc", "--lr", "0.1", "data.password=x"])
    ['--api-key=***', '--hf_token', '***', '--lr', '0.1', 'data.password=***']
    """
    masked: list[str] = []
    next_is_secret = False
    for word in argv:
        key, equals, _ = word.partition("=")
        if next_is_secret and not word.startswith("--"):
            masked.append(MASK)
            next_is_secret = False
        elif equals and is_secret_key(key.lstrip("-")):
            masked.append(f"{key}={MASK}")
        else:
            masked.append(_URL_LOGIN.sub(MASK, word))
            next_is_secret = not equals and word.startswith("-") and is_secret_key(word.lstrip("-"))
    return masked


def redact_diff(diff: str) -> str:
    r"""Return a ``git diff`` in which literal values of secret keys, and logins in URLs, read ``***``.

    In Python a literal is what stands in quotes; anywhere else (``.env``, YAML, TOML) it is all after the sign.

    >>> print(redact_diff("+++ b/.env\n+HF_TOKEN=abc\n+++ b/hub.py\n+token = read()\n+api_key = 'sk-1'"))
    +++ b/.env
    +HF_TOKEN=***
    +++ b/hub.py
    +token = read()
    +api_key = '***'
    """
    lines, is_code = [], False
    for line in diff.split("\n"):
        named = _FILE.match(line)
        if named:
            is_code = named[1].endswith((".py", ".ipynb"))
        else:
            line = _URL_LOGIN.sub(MASK, _QUOTED.sub(_mask_quoted, line))
            line = line if is_code else _BARE.sub(_mask_bare, line)
        lines.append(line)
    return "\n".join(lines)


def _mask_quoted(found: re.Match[str]) -> str:
    hidden = f"{found['key']}{found['sign']}{found['quote']}{MASK}{found['quote']}"
    return hidden if is_secret_key(found["key"]) else found[0]


def _mask_bare(found: re.Match[str]) -> str:
    return f"{found['key']}{found['sign']}{MASK}" if is_secret_key(found["key"]) else found[0]


def _mask(value: Any) -> Any:
    """Mask a value and all it holds, whatever its type: a number can be a secret too."""
    if isinstance(value, Mapping):
        return {k: _mask(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mask(v) for v in value]
    return value if value is None or value == "" or isinstance(value, bool) else MASK
