# SPDX-License-Identifier: Apache-2.0
"""What a refusal says is for people: no pattern, no Python, and what may be given instead."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.api.words import RULES
from app.main import openapi_document
from tests.api.conftest import intent, key, problem
from tests.api.test_intents import REFUSED, package

KINDS = "must be one of win32, msi, pkg, deb, playbook, application"
RINGS = "must be one of LAB, CANARY, PILOT, DEPARTMENT, GLOBAL"
SAID: dict[str, tuple[Any, str]] = {
    "kind": (intent(package={"kind": "rpm"}), KINDS),
    "kind among packages": (intent(package=..., packages={"intune": {"kind": "rpm"}}), KINDS),
    "kind as a number": (intent(package={"kind": 7}), KINDS),
    "kind as a list": (intent(package={"kind": []}), KINDS),
    "no kind": (intent(package={}), "this field is required"),
    "package": (intent(package="win32"), "must be an object"),
    "detection": (
        intent(package=package(detection={"type": "magic"})),
        "must be one of file, registry, product_code",
    ),
    "ring": (intent(target_ring="MOON"), RINGS),
    "ring as a key": (intent(gates={"MOON": {}}), RINGS),
    "promotion": (intent(promotion="never"), "must be one of automatic, manual"),
    "name": (intent(app_name=" "), "must have no blank at either end and no control characters"),
    "version": (intent(version="1\t"), "must have no blank at either end and no control characters"),
    "address": (
        intent(package=package(uri="ftp://x/y")),
        "must begin with https:// or file:// and have no blanks",
    ),
    "hash": (intent(package=package(sha256="g" * 64)), "must be 64 hexadecimal digits"),
    "command": (intent(package=package(install_command="a\nb")), "must have no control characters"),
}


@pytest.mark.parametrize("case", SAID)
async def test_the_rule_is_told_in_words(asker: httpx.AsyncClient, case: str) -> None:
    body, expected = SAID[case]

    response = await asker.post("/deployments", json=body, headers=key())

    assert [wrong["detail"] for wrong in problem(response, 422, "invalid")["errors"]] == [expected]


@pytest.mark.parametrize("case", REFUSED)
async def test_no_refusal_shows_how_the_rule_is_written(asker: httpx.AsyncClient, case: str) -> None:
    body, _, code = REFUSED[case]

    headers = {**key(), "Content-Type": "application/json"}
    response = await asker.post("/deployments", content=json.dumps(body), headers=headers)

    for wrong in problem(response, 422, code)["errors"]:
        assert not re.search(r"[<>^$\\]|discriminator|dictionary|Kind\b", wrong["detail"]), wrong


def patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for part in schema.values():
            yield from patterns(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from patterns(part)


def test_every_pattern_of_the_contract_has_words() -> None:
    assert set(patterns(openapi_document()["components"]["schemas"])) == set(RULES)
