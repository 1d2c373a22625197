# SPDX-License-Identifier: Apache-2.0
"""Work that concerns a plane as a whole."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Plane
from app.domain import operations
from app.domain.operations import OperationKind, Subject


async def request_check(session: AsyncSession, plane: Plane, *, correlation_id: UUID) -> UUID:
    """Have a real call made to the plane; the operation that makes it."""
    subject = Subject("plane", plane.value)
    return await operations.enqueue(
        session, OperationKind.CHECK_PLANE, subject=subject, correlation_id=correlation_id
    )
