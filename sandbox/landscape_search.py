# SPDX-License-Identifier: Apache-2.0
"""Landscape's search language, as far as tags, access groups, ids, AND (a blank), OR and brackets go."""

import re
from collections.abc import Iterator
from itertools import product

from sandbox.fleet import Fleet
from sandbox.plan import RINGS, Device, Ring
from sandbox.rest import Refused

WORDS = re.compile(r"\(|\)|[^\s()]+")
COMPUTERS_PER_RING = 1_000_000
Clause = frozenset[tuple[str, str]]
"""Selectors that all must hold."""


def computer_id(device: Device) -> int:
    """The number of a computer, from which its ring can be told."""
    return (RINGS.index(device.ring) + 1) * COMPUTERS_PER_RING + device.index + 1


def device_of(number: int, fleet: Fleet) -> Device | None:
    """The computer with a number, if there is one."""
    place, index = number // COMPUTERS_PER_RING - 1, number % COMPUTERS_PER_RING - 1
    if not (0 <= place < len(RINGS) and 0 <= index < fleet.plan.devices(RINGS[place])):
        return None
    return Device(RINGS[place], index)


def parse(query: str) -> list[Clause]:
    """A query as a list of alternatives."""
    words = WORDS.findall(query)
    found, rest = _either(words)
    if rest:
        raise Refused(400, f"Invalid query: {query}")
    return found


def _either(words: list[str]) -> tuple[list[Clause], list[str]]:
    found, rest = _both(words)
    while rest and rest[0] == "OR":
        more, rest = _both(rest[1:])
        found = found + more
    return found, rest


def _both(words: list[str]) -> tuple[list[Clause], list[str]]:
    found: list[Clause] = [frozenset()]
    while words and words[0] not in {"OR", ")"}:
        if words[0] == "(":
            part, words = _either(words[1:])
            if words[:1] != [")"]:
                raise Refused(400, "Invalid query: a bracket is not closed")
        else:
            part = [_selector(words[0])]
        words = words[1:]
        found = [one | other for one, other in product(found, part)]
    return found, words


def _selector(word: str) -> Clause:
    name, colon, value = word.partition(":")
    if not colon or name not in {"tag", "access-group", "id", "parent-id", "status"} or not value:
        raise Refused(400, f"Invalid query: the sandbox does not know {word}")
    return frozenset({(name, value)})


def computers(query: str, fleet: Fleet) -> Iterator[Device]:
    """The computers that a query finds, each once, in the order of their numbers within an alternative."""
    seen: set[Device] = set()
    for clause in parse(query) if query else [frozenset[tuple[str, str]]()]:
        for device in _of_clause(clause, fleet):
            if device not in seen:
                seen.add(device)
                yield device


def _of_clause(clause: Clause, fleet: Fleet) -> Iterator[Device]:
    ids = [int(value) for name, value in clause if name == "id"]
    rings = _rings(clause)
    if ids:
        device = device_of(ids[0], fleet)
        if device is not None and len(ids) == 1 and device.ring in rings:
            yield device
        return
    for ring in RINGS:
        if ring in rings:
            yield from fleet.devices(ring)


def _rings(clause: Clause) -> set[Ring]:
    """Each ring has a tag, and an access group, of its name in lower case."""
    wanted = {value for name, value in clause if name in {"tag", "access-group"}}
    return {ring for ring in RINGS if wanted <= {ring.lower()}}


def rings(query: str, fleet: Fleet) -> dict[Ring, tuple[int, ...] | None]:
    """The rings that a query names, whole (None) or by the numbers of their computers."""
    clauses = parse(query)
    names = {name for clause in clauses for name, _ in clause}
    if query and names <= {"id"}:
        found: dict[Ring, list[int]] = {}
        for device in computers(query, fleet):
            found.setdefault(device.ring, []).append(device.index)
        return {ring: tuple(found[ring]) for ring in RINGS if ring in found}
    if not names <= {"tag", "access-group"} or not query:
        raise Refused(400, "the sandbox changes packages by tag, by access group or by ids only")
    whole = [_rings(clause) for clause in clauses]
    return {ring: None for ring in RINGS if any(ring in each for each in whole)}
