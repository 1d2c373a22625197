# SPDX-License-Identifier: Apache-2.0
"""How much may be in motion at once: devices changed and not verified, over all deployments together."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.facts import Budget
from app.domain.rollout import UNVERIFIED
from app.models import RingDeployment

LOCK = 0x45554355
"""The advisory lock under which the budget is taken, so that two lanes do not take the same rest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an installation bounds. ``unverified_devices`` None: as many as the rings hold.

    A deployment may try ``retry_share`` of its targeted devices again, at least ``retry_floor``.
    """

    unverified_devices: int | None = None
    retry_share: float = 0.2
    retry_floor: int = 10

    def retries(self, targeted: int) -> int:
        """How many devices a deployment that targets so many may try again."""
        return max(self.retry_floor, int(targeted * self.retry_share))


async def budget(session: AsyncSession, limits: Limits, *, without: UUID | None = None) -> Budget:
    """What is taken of the blast-radius budget, ``without`` one lane's own part."""
    if limits.unverified_devices is None:
        return Budget()
    query = select(func.coalesce(func.sum(RingDeployment.reserved), 0)).where(
        RingDeployment.reserved > 0, RingDeployment.status.in_(UNVERIFIED)
    )
    if without is not None:
        query = query.where(RingDeployment.id != without)
    return Budget(limits.unverified_devices, int(await session.scalar(query) or 0))


async def lock(session: AsyncSession) -> None:
    """Let nobody else take of the budget until the transaction ends."""
    await session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


async def reserve(session: AsyncSession, lane_id: UUID, devices: int) -> None:
    """Take the lane's devices; they are given back by the lane's leaving the ``UNVERIFIED`` states."""
    await session.execute(update(RingDeployment).where(RingDeployment.id == lane_id).values(reserved=devices))
