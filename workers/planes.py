# SPDX-License-Identifier: Apache-2.0
"""The jobs that ask about a plane itself: does it answer, how many devices does a target hold."""

from app.connectors.contract import Connector, Plane, Target, TargetKind
from app.domain import targets
from app.models import Ring
from app.resilience.errors import NotConfigured
from workers.context import Done, Job, Outcome

LOOK_AGAIN = 60.0
"""Seconds after which a job looks whether its plane is configured by now."""


def connector_for(job: Job, plane: Plane) -> Connector:
    """The plane's connector.

    Raises:
        NotConfigured: this process has no settings for it; the work waits, nothing fails.
    """
    connector = job.runtime.connectors.get(plane)
    if connector is None:
        missing = job.runtime.unconfigured.get(plane, "it has no connector in this release")
        raise NotConfigured(
            f"{plane.value} is not configured: {missing}", service=plane.value, retry_after=LOOK_AGAIN
        )
    return connector


async def check_plane(job: Job) -> Outcome:
    """Make a real, harmless call to the plane."""
    health = await connector_for(job, Plane(job.claimed.subject.id)).check()
    return Done({"detail": health.detail, "facts": dict(health.facts)})


async def count_target(job: Job) -> Outcome:
    """Count the devices a ring's target holds; the subject is ``<plane>/<ring>``, ``args`` the target."""
    plane, ring = job.claimed.subject.id.split("/")
    target = Target(TargetKind(job.claimed.args["kind"]), job.claimed.args["ref"])
    total = 0
    async for members in connector_for(job, Plane(plane)).members(target):
        total += len(members)
    async with job.transaction() as session:
        now = job.runtime.clock()
        await targets.counted(session, Plane(plane), Ring(ring), target, devices=total, now=now)
    return Done({"device_count": total})
