# SPDX-License-Identifier: Apache-2.0
"""The document is good enough for a generator: its client submits a deployment and reads it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from tests.api.conftest import BOOTSTRAP, intent, serving
from tests.api.generated_client import GeneratedClient, generated_client


def use(folder: Path, origin: str) -> dict[str, Any]:
    """What an integrator's script would do; blocks."""
    with generated_client(folder, base_url=origin, token=BOOTSTRAP) as client:
        submitted = client.submit(intent(), idempotency_key="once")
        return {
            "submitted": submitted,
            "repeated": client.submit(intent(), idempotency_key="once"),
            "read": client.read(submitted.id),
            "events": client.call("deployments.list_events", deployment_id=submitted.id),
            "operation": client.call("operations.read_operation", operation_id=submitted.operation_id),
            "refused": refused(client),
        }


def refused(client: GeneratedClient) -> Any:
    return client.submit(intent(target_ring="GLOBAL", planes=["ansible"]), idempotency_key="other")


@pytest.mark.usefixtures("all_targets")
async def test_a_generated_client_submits_and_reads(app: FastAPI, tmp_path: Path) -> None:
    async with serving(app) as base_url:
        got = await asyncio.to_thread(use, tmp_path, base_url.removesuffix("/api/v1"))

    assert got["submitted"].status.value == "PENDING"
    assert got["repeated"] == got["submitted"]
    assert got["read"] == got["submitted"]
    assert got["events"].items[0].type_ == "deployment.submitted"
    assert got["operation"].kind.value == "deploy_to_connector"
    assert got["refused"].code == "plane_not_configured"
    assert got["refused"].errors[0].pointer == "/planes/0"
