# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, finished: what the framework does not know of the conventions."""

from typing import Any

from app.api.examples import EXAMPLES

DESCRIPTION = "Carries rollouts out, ring by ring, through the device managers a company already has."
TAGS: list[dict[str, Any]] = [
    {"name": "deployments", "description": "Intents and what becomes of them."},
    {"name": "approvals", "description": "What the change advisory board is asked and decides."},
    {"name": "gates", "description": "What it takes to leave a ring."},
    {"name": "freezes", "description": "When devices may be touched."},
    {"name": "drift", "description": "Where planes have something else than was decided."},
    {"name": "operations", "description": "Durable work: what is done after an answer."},
    {"name": "targets", "description": "Which devices a ring means on a plane."},
    {"name": "planes", "description": "The device managers."},
    {"name": "breakers", "description": "What keeps callers away from services that fail."},
    {"name": "ai", "description": "The assistant: it explains and proposes; only people decide."},
    {"name": "health", "description": "Whether this process can do its work."},
]

CORRELATION = {"schema": {"type": "string", "format": "uuid"}}
ENTITY_TAG = {"schema": {"type": "string", "maxLength": 50}, "description": "The resource's `version`."}
REPLAYED = {
    "schema": {"type": "string", "enum": ["true"]},
    "description": "There if this is the answer stored before.",
}
CHALLENGE = {"schema": {"type": "string", "maxLength": 200}}
RETRY_AFTER = {"schema": {"type": "integer", "minimum": 1, "maximum": 86_400}, "description": "Seconds."}
LOCATION = {"schema": {"type": "string", "maxLength": 200}}


def document(made: dict[str, Any]) -> dict[str, Any]:
    """The framework's document with security, examples and headers, and in words that generators know."""
    components = made["components"]
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for name, example in EXAMPLES.items():
        components["schemas"][name]["examples"] = [example]
    made["paths"]["/api/v1/health/"] = made["paths"].pop("/api/v1/health")  # published so; both are served
    for path in made["paths"].values():
        for method, operation in path.items():
            _finish_parameters(operation)
            for status, response in operation["responses"].items():
                _finish_response(operation, method, status, response, components["schemas"])
    return made


def _finish_parameters(operation: dict[str, Any]) -> None:
    """A parameter that is not sent is absent, never null."""
    for parameter in operation["parameters"]:
        choices = parameter["schema"].pop("anyOf", None)
        if choices is not None:
            parameter["schema"] |= next(choice for choice in choices if choice != {"type": "null"})


def _finish_response(
    operation: dict[str, Any], method: str, status: str, response: dict[str, Any], schemas: dict[str, Any]
) -> None:
    content = response.setdefault("content", {})
    headers = response.setdefault("headers", {"X-Correlation-ID": CORRELATION})
    if "application/problem+json" in content:
        content.pop("application/json", None)
    for kind in content.values():
        # OpenAPI 3.2's word for the items of a stream; generators for 3.1 abort on it.
        if kind.pop("itemSchema", None) is not None:
            kind["schema"] = {"type": "string", "maxLength": 10_000_000}
    if status == "401":
        headers["WWW-Authenticate"] = CHALLENGE
    if status in {"429", "503"} and "application/problem+json" in content:
        headers["Retry-After"] = RETRY_AFTER
    if status.startswith("2"):
        _finish_success(operation, method, headers, content, schemas)


def _finish_success(
    operation: dict[str, Any],
    method: str,
    headers: dict[str, Any],
    content: dict[str, Any],
    schemas: dict[str, Any],
) -> None:
    if method == "post":
        headers["Idempotency-Replayed"] = REPLAYED
    if operation["operationId"].startswith("create_"):
        headers["Location"] = LOCATION
    name = content.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
    if "version" in schemas.get(name, {}).get("properties", {}):
        headers["ETag"] = ENTITY_TAG
