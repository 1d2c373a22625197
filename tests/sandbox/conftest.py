# SPDX-License-Identifier: Apache-2.0
"""A sandbox of each test's own, behind one real socket for all."""

from collections.abc import AsyncIterator

import pytest

from sandbox.main import create_app
from tests.connectors.contract_check import CONTRACTS
from tests.sandbox.contract import Contract
from tests.sandbox.stage import Stage
from tests.sandbox.tenant import Clock, Tenant


@pytest.fixture(scope="session")
def graph_contract() -> Contract | None:
    """Graph v1.0, where the contracts are at hand."""
    path = CONTRACTS / "microsoft-graph.openapi.json"
    return Contract(path, below="/intune/v1.0") if path.exists() else None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tenant(stage: Stage, clock: Clock, graph_contract: Contract | None) -> AsyncIterator[Tenant]:
    async with stage.showing(create_app(clock=clock)):
        tenant = Tenant(stage.url, clock, graph_contract)
        yield tenant
        tenant.close()
