# SPDX-License-Identifier: Apache-2.0
"""The document: committed, complete, and the same as what the routes do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from jsonschema import Draft202012Validator

from app.api.examples import EXAMPLES
from app.api.routing import DECLARED
from app.main import create_app, openapi_document, openapi_text
from app.security import Permission
from app.settings import Settings

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
ANY_TEXT = {"X-Correlation-ID"}
"""Taken or replaced, never refused: the one text without a bound."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_committed_document_is_the_one_the_routes_make() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == openapi_text() + "\n", (
        "run: eucora openapi > docs/openapi.json"
    )


async def test_the_running_api_serves_the_same_document(
    stranger: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    served = await stranger.get("http://api.test/openapi.json")

    assert served.json() == document


def test_every_route_declares_a_permission_a_tag_and_is_called_like_its_handler() -> None:
    contexts = list(iter_route_contexts(create_app(Settings.model_construct()).routes))
    routes = [each for each in contexts if isinstance(each.original_route, APIRoute)]

    assert len(routes) == len(list(operations(openapi_document())))
    for route in routes:
        assert route.endpoint is not None
        assert DECLARED[route.endpoint].permission in Permission
        assert route.operation_id == route.endpoint.__name__
        assert len(route.tags) == 1
        assert route.summary


def test_every_path_of_the_contract_is_there(document: dict[str, Any]) -> None:
    assert {name: operation["operationId"] for name, operation in operations(document)} == {
        "POST /api/v1/ai/conversations": "create_conversation",
        "GET /api/v1/ai/conversations": "list_conversations",
        "GET /api/v1/ai/conversations/{conversation_id}": "read_conversation",
        "POST /api/v1/ai/conversations/{conversation_id}/messages": "create_message",
        "GET /api/v1/ai/conversations/{conversation_id}/events": "list_conversation_events",
        "POST /api/v1/ai/tasks": "create_ai_task",
        "GET /api/v1/ai/tasks": "list_ai_tasks",
        "GET /api/v1/ai/tasks/{task_id}": "read_ai_task",
        "POST /api/v1/ai/tasks/{task_id}/approve": "approve_ai_task",
        "POST /api/v1/ai/tasks/{task_id}/reject": "reject_ai_task",
        "POST /api/v1/ai/tasks/{task_id}/request-revision": "revise_ai_task",
        "POST /api/v1/deployments": "create_deployment",
        "GET /api/v1/deployments": "list_deployments",
        "GET /api/v1/deployments/{deployment_id}": "read_deployment",
        "POST /api/v1/deployments/{deployment_id}/promote": "promote_deployment",
        "POST /api/v1/deployments/forecast": "forecast_deployment",
        "POST /api/v1/deployments/{deployment_id}/pause": "pause_deployment",
        "POST /api/v1/deployments/{deployment_id}/resume": "resume_deployment",
        "POST /api/v1/deployments/{deployment_id}/cancel": "cancel_deployment",
        "POST /api/v1/deployments/{deployment_id}/rollback": "rollback_deployment",
        "POST /api/v1/deployments/{deployment_id}/retry": "retry_deployment",
        "GET /api/v1/deployments/{deployment_id}/gates": "list_deployment_gates",
        "GET /api/v1/deployments/{deployment_id}/blockers": "list_blockers",
        "GET /api/v1/deployments/{deployment_id}/failures": "list_failures",
        "GET /api/v1/deployments/{deployment_id}/effects": "list_effects",
        "GET /api/v1/deployments/{deployment_id}/devices": "list_devices",
        "GET /api/v1/deployments/{deployment_id}/events": "list_events",
        "GET /api/v1/operations": "list_operations",
        "GET /api/v1/operations/{operation_id}": "read_operation",
        "POST /api/v1/operations/{operation_id}/cancel": "cancel_operation",
        "POST /api/v1/operations/{operation_id}/retry": "retry_operation",
        "GET /api/v1/approvals": "list_approvals",
        "GET /api/v1/approvals/{approval_id}": "read_approval",
        "POST /api/v1/approvals/{approval_id}/approve": "approve_approval",
        "POST /api/v1/approvals/{approval_id}/reject": "reject_approval",
        "GET /api/v1/gate-policies": "list_gate_policies",
        "GET /api/v1/drift": "list_drift",
        "GET /api/v1/drift/{drift_id}": "read_drift",
        "GET /api/v1/freezes": "list_freezes",
        "POST /api/v1/freezes": "create_freeze",
        "GET /api/v1/freezes/{freeze_id}": "read_freeze",
        "DELETE /api/v1/freezes/{freeze_id}": "delete_freeze",
        "GET /api/v1/maintenance-windows": "list_maintenance_windows",
        "GET /api/v1/maintenance-windows/{plane}/{ring}": "read_maintenance_window",
        "PUT /api/v1/maintenance-windows/{plane}/{ring}": "put_maintenance_window",
        "DELETE /api/v1/maintenance-windows/{plane}/{ring}": "delete_maintenance_window",
        "GET /api/v1/targets": "list_targets",
        "GET /api/v1/targets/{plane}/{ring}": "read_target",
        "PUT /api/v1/targets/{plane}/{ring}": "put_target",
        "GET /api/v1/planes": "list_planes",
        "GET /api/v1/planes/{plane}": "read_plane",
        "POST /api/v1/planes/{plane}/check": "check_plane",
        "GET /api/v1/breakers": "list_breakers",
        "GET /api/v1/breakers/{service}": "read_breaker",
        "GET /api/v1/breakers/{service}/events": "list_breaker_events",
        "POST /api/v1/breakers/{service}/reset": "reset_breaker",
        "POST /api/v1/breakers/{service}/isolate": "isolate_breaker",
        "POST /api/v1/breakers/{service}/disable": "disable_breaker",
        "POST /api/v1/breakers/{service}/enable": "enable_breaker",
        "GET /api/v1/health/": "read_health",
        "GET /api/v1/health/live": "read_liveness",
        "GET /api/v1/health/ready": "read_readiness",
        "GET /metrics": "read_metrics",
    }


def test_every_error_status_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for name, operation in operations(document):
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert {"422", "500"} <= errors.keys(), name
        if "security" in operation:
            assert {"401", "403", "503"} <= errors.keys(), name
        for status, answer in errors.items():
            if "/health" not in name or status != "503":
                assert answer["content"] == problem, (name, status)


def test_every_text_number_and_array_has_bounds(document: dict[str, Any]) -> None:
    places = dict(document["components"]["schemas"])
    for name, operation in operations(document):
        places |= {
            f"{name} {parameter['name']}": parameter["schema"]
            for parameter in operation["parameters"]
            if parameter["name"] not in ANY_TEXT
        }

    assert [place for name, schema in places.items() for place in unbounded(schema, name)] == []


def unbounded(schema: Any, place: str) -> Iterator[str]:
    """Where below ``schema`` a bound is missing."""
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind == "string" and not schema.keys() & {"maxLength", "enum", "const", "format"}:
        yield place
    if kind in {"integer", "number"} and not schema.keys() >= {"minimum", "maximum"}:
        yield place
    if kind == "array" and "maxItems" not in schema:
        yield place
    if (
        kind == "object"
        and isinstance(schema.get("additionalProperties"), dict)
        and "maxProperties" not in schema
    ):
        yield place
    for name, inner in schema.get("properties", {}).items():
        yield from unbounded(inner, f"{place}/{name}")
    for word in ("items", "additionalProperties"):
        yield from unbounded(schema.get(word), f"{place}/{word}")
    for word in ("anyOf", "oneOf", "allOf"):
        for index, inner in enumerate(schema.get(word, [])):
            yield from unbounded(inner, f"{place}/{word}/{index}")


def test_enums_have_names(document: dict[str, Any]) -> None:
    def inline(schema: Any, place: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if len(schema.get("enum", ())) > 1:
                yield place
            for name, inner in schema.items():
                yield from inline(inner, f"{place}/{name}")
        elif isinstance(schema, list):
            for index, inner in enumerate(schema):
                yield from inline(inner, f"{place}/{index}")

    named = document["components"]["schemas"]
    inside = [
        place for name, schema in named.items() if "enum" not in schema for place in inline(schema, name)
    ]

    assert inside + list(inline(document["paths"], "paths")) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_fit_their_schemas(document: dict[str, Any], name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}

    Draft202012Validator(schema).validate(EXAMPLES[name])


def test_no_word_of_a_newer_openapi_is_in_it() -> None:
    # openapi-generator aborts on it: https://spec.openapis.org/oas/v3.2.0 introduced `itemSchema`.
    assert "itemSchema" not in openapi_text()
