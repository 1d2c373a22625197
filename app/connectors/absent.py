# SPDX-License-Identifier: Apache-2.0
"""How a connector answers for the parts of the port that its plane does not have."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from app.connectors.contract import (
    App,
    Assignment,
    Capability,
    Manifest,
    Observed,
    ReportPage,
    UploadProgress,
)
from app.resilience.errors import PermanentError


class AbsentParts:
    """To be inherited: says what is absent instead of doing it; a vendor overrides what it has."""

    manifest: ClassVar[Manifest]

    async def upload(
        self, app: App, external_id: str, checkpoint: Mapping[str, Any] | None
    ) -> AsyncGenerator[UploadProgress, None]:
        """Nothing to send: the plane gets its content elsewhere."""
        del app, external_id, checkpoint
        yield UploadProgress({}, 0, 0, done=True)

    async def baseline(self, assignment: Assignment) -> str | None:
        """Nothing to remember: what is made is found again by its marker."""
        del assignment
        return None

    async def cancel(self, assignment: Assignment) -> None:
        """Refuse.

        Raises:
            PermanentError: always.
        """
        del assignment
        self._refuse(Capability.CANCEL)

    async def retry(self, assignment: Assignment) -> str:
        """Refuse.

        Raises:
            PermanentError: always.
        """
        del assignment
        self._refuse(Capability.RETRY)

    async def observe(self, assignment: Assignment) -> Observed:
        """Refuse.

        Raises:
            PermanentError: always.
        """
        del assignment
        self._refuse(Capability.OBSERVE)

    async def returned(
        self, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """No device ever returns to an earlier version."""
        del assignment, after
        nothing: Sequence[ReportPage] = ()
        for page in nothing:
            yield page

    async def find_version(self, app: App, version: str) -> str | None:
        """No earlier version can be brought back."""
        del app, version
        return None

    def _refuse(self, capability: Capability) -> NoReturn:
        plane, reason = self.manifest.plane.value, self.manifest.cannot[capability]
        raise PermanentError(f"{self.manifest.title} cannot {capability.value}: {reason}", service=plane)
