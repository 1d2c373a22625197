# SPDX-License-Identifier: Apache-2.0
"""What no text of PostgreSQL can hold, and other systems now and then say, is left out."""

import json
from typing import Any

SUSPICIOUS = ("\\u0000", "\\ud")
"""Escapes of what cannot be stored, and of some that can."""


def storable(given: str) -> str:
    """Without NUL, and with U+FFFD for each half of a surrogate pair."""
    if given.isprintable():
        return given
    return given.replace("\x00", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def storable_json(value: Any) -> str:
    """JSON of ``value``, whose texts, names of members too, are made ``storable``."""
    made = json.dumps(value)
    if any(escape in made for escape in SUSPICIOUS):
        made = json.dumps(_storable(value))
    return made


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(name): _storable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(inner) for inner in value]
    return value
