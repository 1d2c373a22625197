# SPDX-License-Identifier: Apache-2.0
"""How operations come into the hands of one process: many in one statement, or one that has to wait."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from app.domain import batches, dispatch, leases
from app.domain.leases import Claimed
from app.runtime import Runtime
from workers import failures


class Claims:
    """For ``owner``."""

    def __init__(self, runtime: Runtime, owner: str) -> None:
        self._runtime = runtime
        self._owner = owner
        self._lease = timedelta(seconds=runtime.settings.worker.lease)

    async def together(self, ids: Sequence[UUID]) -> dict[UUID, Claimed]:
        """Those that are due, that nobody has and nobody is looking at."""
        async with self._runtime.driver() as connection:
            return await batches.claim(connection, ids, owner=self._owner, lease=self._lease)

    async def one(self, operation_id: UUID) -> Claimed | None:
        """It, if it is due and nobody has it."""
        try:
            return await self._try_one(operation_id)
        except SQLAlchemyError as error:
            if not failures.is_down(error):
                raise
            return await self._try_one(operation_id)  # the pool knows by now that its connections are dead

    async def _try_one(self, operation_id: UUID) -> Claimed | None:
        async with self._runtime.autocommit() as connection:
            return await leases.claim(connection, operation_id, owner=self._owner, lease=self._lease)

    async def leave_to_others(self, ids: Sequence[UUID]) -> None:
        """Have them rung for again, at once."""
        async with self._runtime.statements() as session:
            await dispatch.undispatch(session, ids)
