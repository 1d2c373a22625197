# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, finished: what the framework does not know of the conventions."""

from typing import Any

DESCRIPTION = "Carries rollouts out, ring by ring, through the device managers a company already has."
TAGS: list[dict[str, Any]] = [
    {"name": "deployments", "description": "Intents and what becomes of them."},
    {"name": "operations", "description": "Durable work: what is done after an answer."},
    {"name": "targets", "description": "Which devices a ring means on a plane."},
    {"name": "planes", "description": "The device managers."},
    {"name": "health", "description": "Whether this process can do its work."},
]


def document(made: dict[str, Any]) -> dict[str, Any]:
    """The framework's document with security, problem answers and response headers as they are."""
    components = made.setdefault("components", {})
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for path in made["paths"].values():
        for operation in path.values():
            _finish(operation)
    return made


def _finish(operation: dict[str, Any]) -> None:
    for status, response in operation["responses"].items():
        headers = response.setdefault("headers", {})
        headers["X-Correlation-ID"] = {"schema": {"type": "string", "format": "uuid"}}
        if status == "401":
            headers["WWW-Authenticate"] = {"schema": {"type": "string", "maxLength": 200}}
        if status == "503":
            headers["Retry-After"] = {"schema": {"type": "integer", "minimum": 1, "maximum": 86_400}}
        if "application/problem+json" in response.get("content", {}):
            response["content"].pop("application/json", None)
