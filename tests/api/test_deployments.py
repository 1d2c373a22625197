# SPDX-License-Identifier: Apache-2.0
"""Submitting, reading and commanding deployments."""

import httpx

from app.api.deployments import DeploymentRead
from tests.api.conftest import intent, key


async def test_a_submission_is_answered_with_what_is_stored(
    client: httpx.AsyncClient, all_targets: None
) -> None:
    response = await client.post("/deployments", json=intent(), headers=key())

    assert response.status_code == 202
    submitted = response.json()
    assert response.headers["location"] == f"/api/v1/deployments/{submitted['id']}"
    assert response.headers["etag"] == '"1"'
    read = await client.get(response.headers["location"].removeprefix("/api/v1"))
    assert read.json() == submitted
    assert read.headers["etag"] == '"1"'
    assert [lane["ring"] for lane in submitted["lanes"]] == ["LAB", "CANARY", "PILOT"]
    assert submitted["operation_id"] == submitted["lanes"][0]["operation_id"]
    DeploymentRead.model_validate_json(response.content)
