"""Keys, tokens and passwords, kept out of whatever is written down or shown.

A command line may hold them (`data.path=https://user:token@host/x`), and so may a message of a library. What is taken
for a secret: the user and password of an address; the value of a name that says it is one (`token=`, `api_key=`); what
has the shape of a well-known kind of key; and, wherever they stand, the values of environment variables of such names.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_STRONG = (
    r"api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|account[_-]?key|(?:client|app)?[_-]?secret|"
    r"(?:access|auth|refresh|bearer|hf)[_-]?token|\w*passw(?:or)?d|passphrase|credentials?|authorization"
)
_NAME = rf"(?:[\w.-]*[._-])?(?:{_STRONG}|token|pass|pwd|sig|signature)"
_IS_SECRET = re.compile(_NAME, re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/?#@\s\"'\\]+(?:@[^/?#@\s\"'\\]+)*@", re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?<![\w.-])({_NAME})(\s?=\s?|%3D)(?!{re.escape(HIDDEN)})[^\s\"'&;,\\]+", re.IGNORECASE)
_TOLD = re.compile(
    rf"(?<![\w-])((?:[\w.-]*[._-])?(?:{_STRONG}))(:\s?)(?!{re.escape(HIDDEN)})[^\s\"'&;,\\]+", re.IGNORECASE
)
_QUOTED = re.compile(
    rf"(?<![\w.-])({_NAME})(\\?[\"']?\s*[=:]\s*)(\\?[\"'])(?!{re.escape(HIDDEN)})(?:(?!\3).)+\3", re.IGNORECASE
)
"""`name="value"`, and what JSON and YAML write, in a JSON text within another too."""
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{12,}", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|sk-[A-Za-z0-9_-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|wandb_v\d_\w{20,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"
)
_SHORTEST = 12
"""Characters of an environment variable's value that is hidden wherever it stands: a shorter one may be any word."""


def redacted(text: str) -> str:
    """The text with whatever is taken for a secret written as `***`."""
    for value in _values_of_environment():
        text = text.replace(value, HIDDEN)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    if "://" in text:
        text = _IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)
    if "=" in text or ":" in text or "%3D" in text:
        text = _QUOTED.sub(rf"\1\2\3{HIDDEN}\3", text)
        text = _ASSIGNED.sub(rf"\1\2{HIDDEN}", text)
        text = _TOLD.sub(rf"\1\2{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def without_secrets(content: Any) -> Any:
    """The same JSON value with secrets hidden: in every text, and whole under a key that names one."""
    if isinstance(content, str):
        return redacted(content)
    if isinstance(content, Mapping):
        return {
            redacted(key) if isinstance(key, str) else key: HIDDEN
            if isinstance(key, str) and isinstance(value, str) and value and is_secret_name(key)
            else without_secrets(value)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [without_secrets(item) for item in content]
    return content


def is_secret_name(name: str) -> bool:
    """Whether a key, or an environment variable, says of itself that it holds a secret: `HF_TOKEN`, `api_key`."""
    return _IS_SECRET.fullmatch(name) is not None


def _values_of_environment() -> list[str]:
    """The secrets of the environment, the longest first, as they are and as JSON text would have them."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and not value.startswith(("/", "~")) and is_secret_name(name)
    }
    return sorted(values | {json.dumps(value)[1:-1] for value in values}, key=len, reverse=True)
