# SPDX-License-Identifier: Apache-2.0
"""The loop in every worker that lets no state last for ever, and tells how near the oldest ones are to it."""

import asyncio
from datetime import timedelta

from app import telemetry
from app.domain import sweeping
from app.domain.sweeping import Aged, Times, Watch
from app.runtime import Runtime

SWEEP_EVERY = 10.0

log = telemetry.logger(__name__)


def times_of(runtime: Runtime) -> Times:
    """The clock and the limits of this installation, for a sweeper that begins."""
    settings, now = runtime.settings, runtime.clock()
    return Times(
        now=now,
        since=now,
        abandoned=timedelta(seconds=settings.housekeeping.abandoned_after),
        lease=timedelta(seconds=settings.worker.lease),
    )


async def sweep_for_ever(runtime: Runtime) -> None:
    """Until cancelled; survives the loss of PostgreSQL."""
    times = times_of(runtime)
    while True:
        try:
            upcoming = times.at(runtime.clock())
            await sweep(runtime, upcoming)
            times = upcoming
        except Exception as error:  # noqa: BLE001 - servers come and go, the sweeper stays
            log.warning("sweep_failed", error=repr(error))
        await asyncio.sleep(SWEEP_EVERY)


async def sweep(runtime: Runtime, times: Times) -> int:
    """Look at every state that is watched once; how many things were moved on."""
    oldest: dict[tuple[str, str], float] = {
        (watch.machine, state.value): 0.0 for watch in sweeping.WATCHES for state in watch.states
    }
    moved = 0
    for watch in sweeping.WATCHES:
        async with runtime.statements() as session:
            found = await sweeping.aged(session, watch, times)
        for each in found:
            key = (each.machine, each.state)
            oldest[key] = max(oldest[key], each.ratio)
            moved += await enforce(runtime, watch, each, times)
    for (machine, state), ratio in oldest.items():
        telemetry.oldest_state.labels(machine, state).set(ratio)
    return moved


async def enforce(runtime: Runtime, watch: Watch, each: Aged, times: Times) -> int:
    """Move on what is past its time, 1 if it was; one that cannot be does not keep up the others."""
    if not each.overdue:
        return 0
    told = {"machine": each.machine, "state": each.state, "id": str(each.id)}
    try:
        async with runtime.transaction() as session:
            moved = await sweeping.move_on(session, watch, each, times)
    except Exception:
        log.exception("state_not_left", **told)
        return 0
    if moved:
        log.warning("state_left", age_seconds=round(each.age.total_seconds()), **told)
    return int(moved)
