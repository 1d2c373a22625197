# SPDX-License-Identifier: Apache-2.0
"""A vendor's OpenAPI document, held against what was really sent and answered."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

TYPE = "@odata.type"


class Contract:
    """One document. What it does not list is a path that must not be used."""

    def __init__(self, path: Path, *, below: str) -> None:
        self._document = json.loads(path.read_text())
        self._below = below
        resource = DRAFT202012.create_resource(self._document)
        self._registry: Registry[Any] = Registry().with_resource("contract:", resource)
        self._routes = [(pattern(template), item) for template, item in self._document["paths"].items()]

    def check(self, response: httpx.Response) -> None:
        """Fail if the request or its answer is not as the document says."""
        path = response.request.url.path.removeprefix(self._below)
        operation = self._operation(response.request.method, path)
        if response.status_code < 400:
            self._check_request(operation, response.request)
        self._check_answer(operation, response)

    def _operation(self, method: str, path: str) -> dict[str, Any]:
        for known, item in self._routes:
            if known.fullmatch(path) and method.lower() in item:
                operation: dict[str, Any] = item[method.lower()]
                return operation
        raise AssertionError(f"the contract has no {method} {path}")

    def _check_request(self, operation: dict[str, Any], request: httpx.Request) -> None:
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self._validate(schema, json.loads(request.content))
        known = {parameter["name"] for parameter in operation.get("parameters", [])}
        unknown = set(request.url.params) - known
        assert not unknown, f"the contract has no query parameters {unknown}"

    def _check_answer(self, operation: dict[str, Any], response: httpx.Response) -> None:
        family = f"{response.status_code // 100}XX"
        declared = operation["responses"].get(str(response.status_code)) or operation["responses"].get(family)
        assert declared is not None, f"the contract has no status {response.status_code} here"
        while "$ref" in declared:
            declared = self._document["components"]["responses"][declared["$ref"].rsplit("/", 1)[1]]
        if "content" not in declared:
            assert not response.content, "the contract has no body here"
            return
        self._validate(declared["content"]["application/json"]["schema"], response.json())

    def _validate(self, schema: dict[str, Any], value: object) -> None:
        Draft202012Validator(absolute(schema), registry=self._registry).validate(value)
        for name, part in typed_parts(value):
            known = name.removeprefix("#")
            assert known in self._document["components"]["schemas"], f"the contract has no type {name}"
            reference = {"$ref": f"contract:#/components/schemas/{known}"}
            Draft202012Validator(reference, registry=self._registry).validate(part)


def pattern(template: str) -> re.Pattern[str]:
    """A path template as a pattern."""
    parts = re.split(r"\{[^}]*\}", template)
    return re.compile("[^/]+".join(re.escape(part) for part in parts))


def absolute(schema: Any) -> Any:
    """A schema whose references name the document."""
    if isinstance(schema, dict):
        return {
            key: f"contract:{value}" if key == "$ref" else absolute(value) for key, value in schema.items()
        }
    return [absolute(item) for item in schema] if isinstance(schema, list) else schema


def typed_parts(value: object) -> list[tuple[str, object]]:
    """Every object that names its type, at any depth."""
    if isinstance(value, dict):
        own = [(value[TYPE], value)] if isinstance(value.get(TYPE), str) else []
        return own + [part for item in value.values() for part in typed_parts(item)]
    return [part for item in value for part in typed_parts(item)] if isinstance(value, list) else []
