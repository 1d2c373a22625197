# SPDX-License-Identifier: Apache-2.0
"""What Pydantic found wrong, for people: no pattern, no Python, and what may be given instead."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.api import schema
from app.connectors import packages

RULES: Mapping[str, str] = {
    schema.NAME_FORM: "must have no blank at either end and no control characters",
    schema.REASON_FORM: "must not contain NUL",
    schema.CONTENT_FORM: "must say something, and must not contain NUL",
    schema.DIGEST_FORM: "must be 64 hexadecimal digits in lower case",
    schema.HOUR_FORM: "must be an hour of the day, as 22:00",
    packages.TEXT_FORM: "must have no control characters",
    packages.URI_FORM: "must begin with https:// or file:// and have no blanks",
    packages.SHA256_FORM: "must be 64 hexadecimal digits",
}
"""Every pattern of the contract in words."""

PLAIN: Mapping[str, str] = {
    "missing": "this field is required",
    "union_tag_not_found": "this field is required",
    "extra_forbidden": "there is no such field",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "uuid_parsing": "must be a UUID",
}
QUOTED = re.compile(r"'([^']*)'")


def words(wrong: Mapping[str, Any]) -> str:
    """One sentence about one of Pydantic's errors."""
    kind, context = wrong["type"], wrong.get("ctx", {})
    if kind in {"value_error", "assertion_error"} and "error" in context:
        return str(context["error"])
    if kind == "string_pattern_mismatch" and context["pattern"] in RULES:
        return RULES[context["pattern"]]
    # Both are lists of quoted values; members of an enumeration stand there as Python shows them.
    allowed = context.get("expected_tags") or (
        context["expected"] if kind in {"enum", "literal_error"} else ""
    )
    if allowed:
        return f"must be one of {', '.join(QUOTED.findall(allowed))}"
    return PLAIN.get(kind) or str(wrong["msg"])


def place(wrong: Mapping[str, Any]) -> Sequence[str | int]:
    """Where it is wrong. Pydantic blames the whole object for the field that tells which kind it is."""
    location: Sequence[str | int] = wrong["loc"]
    if wrong["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return (*location, wrong["ctx"]["discriminator"].strip("'"))
    return location
