# SPDX-License-Identifier: Apache-2.0
"""The OData of the AdminService, as far as comparisons joined by ``and`` go."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sandbox.journal import Document
from sandbox.rest import Refused

COMPARISON = re.compile(r"\s*(\w+)\s+(eq|gt|ge|le|lt)\s+('(?:[^']|'')*'|-?\d+|true|false)\s*$")
STARTS = re.compile(r"\s*startswith\((\w+),\s*'((?:[^']|'')*)'\)\s+eq\s+true\s*$")
AND = re.compile(r"\s+and\s+(?=(?:[^']*'[^']*')*[^']*$)")
Value = str | int | bool


@dataclass(frozen=True)
class Condition:
    """One comparison of a property with a value."""

    name: str
    operator: str
    value: Value

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether a row satisfies it; texts compare without regard to case, as the provider's do."""
        own, value = row.get(self.name), self.value
        if isinstance(own, str) and isinstance(value, str):
            own, value = own.lower(), value.lower()
        if self.operator == "startswith":
            return isinstance(own, str) and own.startswith(str(value))
        if self.operator == "eq":
            return bool(own == value)
        if not isinstance(own, int) or not isinstance(value, int):
            return False
        return {"gt": own > value, "ge": own >= value, "le": own <= value, "lt": own < value}[self.operator]


def conditions(expression: str | None) -> list[Condition]:
    """The comparisons of a ``$filter``."""
    if not expression:
        return []
    return [_condition(part) for part in AND.split(expression)]


def _condition(part: str) -> Condition:
    if (match := COMPARISON.match(part)) is not None:
        return Condition(match[1], match[2], _value(match[3]))
    if (match := STARTS.match(part)) is not None:
        return Condition(match[1], "startswith", match[2].replace("''", "'"))
    raise Refused(400, f"Syntax error in the filter at '{part}'.")


def _value(text: str) -> Value:
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    return text == "true" if text in {"true", "false"} else int(text)


def equal(wanted: Iterable[Condition], name: str) -> Value | None:
    """The value that a property must equal, if the filter says so."""
    return next((each.value for each in wanted if each.name == name and each.operator == "eq"), None)


def least(wanted: Iterable[Condition], name: str) -> int:
    """The smallest number that a property may have."""
    bounds = [
        int(each.value) + (each.operator == "gt")
        for each in wanted
        if each.name == name and each.operator in {"gt", "ge"}
    ]
    return max(bounds, default=0)


def chosen(rows: Iterable[Document], wanted: list[Condition], options: Mapping[str, str]) -> list[Document]:
    """The rows that satisfy every comparison, at most ``$top``, with the properties of ``$select``."""
    fits: Iterator[Document] = (row for row in rows if all(each.holds(row) for each in wanted))
    order = options.get("$orderby")
    if order is not None:
        fits = iter(sorted(fits, key=lambda row: row[order.split(" ")[0]]))
    names = [name.strip() for name in options.get("$select", "").split(",") if name.strip()]
    some = islice(fits, int(options["$top"])) if "$top" in options else fits
    return [{"@odata.etag": "FC1", **({name: row[name] for name in names} if names else row)} for row in some]
