# SPDX-License-Identifier: Apache-2.0
"""Submissions that arrive together are stored together: one statement for all of them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import asyncpg

from app.coalescing import Coalescer
from app.domain import acceptance
from app.domain.acceptance import Submission
from app.domain.idempotency import StoredAnswer
from app.domain.intents import Plan
from app.runtime import Runtime

LANES = 3
"""Statements at a time: while one waits for the disk or for a lock, the others go on. With more of them each
stores less, and costs the database more for each."""

MOST = 16
"""Submissions in one statement. With more the process idles while it waits, then has all to answer."""


class Once(NamedTuple):
    """Of two submissions with these, perhaps with different bodies, one is stored."""

    caller: str
    key: str


class Submissions:
    """The way of all submissions of this process into the database."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._together = Coalescer[Once, Submission](self._store, lanes=LANES, most=MOST)

    async def accept(self, plan: Plan, **given: Any) -> StoredAnswer | None:
        """As ``acceptance.store``, which is asked if the batch did not store this plan.

        One submission that breaks a rule undoes its whole batch; then each goes alone and hears what it did.
        Where the answer to a batch was lost it may be stored all the same: each is looked up by its key.
        """
        submission = acceptance.submission(plan, **given)
        once = Once(submission.request.caller, submission.request.key)
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if await self._together.dealt_with(once, submission):
                return None
        async with self._runtime.driver() as connection:
            return await acceptance.store(connection, submission)

    async def _store(self, submissions: Mapping[Once, Submission]) -> set[Once]:
        async with self._runtime.driver() as connection:
            stored = await acceptance.store_together(connection, list(submissions.values()))
        return {once for once, each in submissions.items() if each.plan.id in stored}
