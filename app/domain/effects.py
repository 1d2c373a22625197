# SPDX-License-Identifier: Apache-2.0
"""The ledger of changes asked of planes: written before they are sent, one row per key for ever."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action
from app.errors import IllegalTransition
from app.models import Effect, EffectState, Ring, RingDeployment, new_id

ONCE = frozenset({Action.PUBLISH, Action.UPLOAD})
"""Actions that are done once for all rings of a deployment on a plane."""

OPEN = frozenset({EffectState.PLANNED, EffectState.SENT, EffectState.UNKNOWN})
DOUBTFUL = (EffectState.SENT, EffectState.UNKNOWN)
NEVER_KNOWN = "it was sent, its answer was lost, and the plane could not be asked in time"
TOUCHED = (EffectState.SENT, EffectState.UNKNOWN, EffectState.CONFIRMED)
"""States in which the plane may have acted."""


MOVES: Mapping[EffectState, frozenset[EffectState]] = MappingProxyType(
    {
        EffectState.PLANNED: frozenset({EffectState.SENT, EffectState.REJECTED}),
        EffectState.SENT: frozenset(
            {EffectState.SENT, EffectState.CONFIRMED, EffectState.REJECTED, EffectState.UNKNOWN}
        ),
        EffectState.UNKNOWN: frozenset({EffectState.SENT, EffectState.CONFIRMED, EffectState.REJECTED}),
        EffectState.REJECTED: frozenset({EffectState.PLANNED}),
        EffectState.CONFIRMED: frozenset({EffectState.PLANNED}),
    }
)
"""What may follow what. PLANNED and never sent is REJECTED once its deployment is over. SENT again: the plane
was asked, twice, and does not have it. A confirmed one is planned anew only where a rollback undoes something
else by it."""


def effect_key(deployment_id: UUID, plane: str, ring: Ring, action: Action, *, turn: int = 1) -> str:
    """The key of an effect: the same for every attempt, and for every ring where the action is done once.

    What is asked of the failed devices again is another effect: ``turn`` 2 and more stand behind the action.
    """
    scope = f"{deployment_id}/{plane}"
    if action in ONCE:
        return f"{scope}/{action.value}"
    return f"{scope}/{ring.value}/{action.value}" + (f"/{turn}" if turn > 1 else "")


@dataclass(frozen=True, slots=True)
class Planned:
    """An effect as a job needs it. ``doubtful``: sent before with the outcome unknown, so ask first."""

    id: UUID
    key: str
    action: Action
    state: EffectState
    external_id: str | None
    checkpoint: dict[str, Any] | None
    settled_at: datetime | None = None
    absent_at: datetime | None = None

    @property
    def baseline(self) -> str | None:
        """What was to be remembered before it was sent; see ``Connector.baseline``."""
        return (self.checkpoint or {}).get("baseline")

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.state is EffectState.CONFIRMED

    @property
    def doubtful(self) -> bool:
        """Whether it was sent and never confirmed."""
        return self.state in DOUBTFUL


async def plan(
    session: AsyncSession, lane: RingDeployment, action: Action, operation_id: UUID, *, turn: int = 1
) -> Planned:
    """Write the effect down, or find it if planned before; a rejected one is planned anew under its key."""
    key = effect_key(lane.deployment_id, lane.plane, lane.ring, action, turn=turn)
    once = action in ONCE
    statement = insert(Effect).values(
        id=new_id(),
        key=key,
        deployment_id=lane.deployment_id,
        lane_id=None if once else lane.id,
        ring=None if once else lane.ring,
        plane=lane.plane,
        action=action,
        operation_id=operation_id,
    )
    await session.execute(statement.on_conflict_do_nothing(index_elements=[Effect.key]))
    effect = (await session.scalars(select(Effect).filter_by(key=key).with_for_update())).one()
    if effect.state is EffectState.REJECTED:
        effect.state, effect.error, effect.settled_at = EffectState.PLANNED, None, None
        effect.operation_id = operation_id
    return as_planned(effect)


async def find_newest(session: AsyncSession, lane: RingDeployment, action: Action) -> Planned:
    """The effect of that kind on the lane that holds: the last confirmed turn, else the last one sent."""
    query = select(Effect).where(*_of_lane(lane), Effect.action == action, Effect.state.in_(TOUCHED))
    query = query.order_by((Effect.state == EffectState.CONFIRMED).desc(), Effect.id.desc()).limit(1)
    return as_planned((await session.scalars(query)).one())


def _of_lane(lane: RingDeployment) -> tuple[ColumnElement[bool], ...]:
    """The ledger has an index of deployments, none of lanes."""
    return Effect.deployment_id == lane.deployment_id, Effect.lane_id == lane.id


async def published_id(session: AsyncSession, lane: RingDeployment) -> str:
    """The vendor's id by the ledger: a lane is touched only after its application was published."""
    key = effect_key(lane.deployment_id, lane.plane, lane.ring, Action.PUBLISH)
    return str((await session.scalars(select(Effect.external_id).filter_by(key=key))).one())


async def plan_turn(
    session: AsyncSession, lane: RingDeployment, action: Action, operation_id: UUID
) -> Planned:
    """Plan an effect of the lane once more, as another one; an operation that did so before finds its own."""
    query = select(Effect.operation_id).where(*_of_lane(lane), Effect.action == action).order_by(Effect.id)
    turns = list(await session.scalars(query))
    turn = len(turns) if turns and turns[-1] == operation_id else len(turns) + 1
    return await plan(session, lane, action, operation_id, turn=turn)


async def renew(session: AsyncSession, lane: RingDeployment, action: Action) -> None:
    """Plan an effect anew that was confirmed: since then something else is to be done by it."""
    key = effect_key(lane.deployment_id, lane.plane, lane.ring, action)
    done = update(Effect).where(Effect.key == key, Effect.state == EffectState.CONFIRMED)
    await session.execute(done.values(state=EffectState.PLANNED, settled_at=None, sent_at=None))


def as_planned(effect: Effect) -> Planned:
    """A row as jobs need it."""
    return Planned(
        id=effect.id,
        key=effect.key,
        action=effect.action,
        state=effect.state,
        external_id=effect.external_id,
        checkpoint=effect.checkpoint,
        settled_at=effect.settled_at,
        absent_at=effect.absent_at,
    )


async def sent(session: AsyncSession, effect_id: UUID, *, operation_id: UUID, now: datetime) -> None:
    """The request is about to leave: from here on only the plane knows whether it happened.

    Raises:
        IllegalTransition: it is settled, as every function below.
    """
    values = {"sent_at": now, "absent_at": None, "settled_at": None, "operation_id": operation_id}
    await _move(session, effect_id, EffectState.SENT, **values)


async def _move(session: AsyncSession, effect_id: UUID, state: EffectState, **values: Any) -> None:
    sources = [source for source, targets in MOVES.items() if state in targets]
    change = update(Effect).where(Effect.id == effect_id, Effect.state.in_(sources))
    moved = await session.execute(change.values(state=state, **values).returning(Effect.id))
    if moved.one_or_none() is None:
        raise IllegalTransition(f"effect {effect_id} is in no state from which it can be {state.value}")


async def progressed(session: AsyncSession, effect_id: UUID, checkpoint: dict[str, Any]) -> None:
    """Keep how far an upload has come, so that another job, anywhere, goes on from there."""
    await session.execute(update(Effect).where(Effect.id == effect_id).values(checkpoint=checkpoint))


async def absent(session: AsyncSession, effect_id: UUID, *, now: datetime) -> None:
    """The plane was asked after a lost answer and does not have it, or does not show it yet."""
    await session.execute(update(Effect).where(Effect.id == effect_id).values(absent_at=now))


async def confirmed(
    session: AsyncSession, effect_id: UUID, *, external_id: str | None, now: datetime
) -> None:
    """The plane has it."""
    values = {"settled_at": now, "external_id": external_id, "error": None}
    await _move(session, effect_id, EffectState.CONFIRMED, **values)


async def rejected(session: AsyncSession, effect_id: UUID, *, error: dict[str, Any], now: datetime) -> None:
    """The plane refused it: nothing happened there."""
    await _move(session, effect_id, EffectState.REJECTED, settled_at=now, error=error)


async def unknown(session: AsyncSession, effect_id: UUID, *, error: dict[str, Any]) -> None:
    """It was sent and the answer never came; not settled: the plane is asked next."""
    await _move(session, effect_id, EffectState.UNKNOWN, error=error)


async def never_known(session: AsyncSession, effect_id: UUID, *, now: datetime) -> None:
    """Nobody asks any more whether the plane has it: it stays UNKNOWN, settled."""
    unknown = update(Effect).where(Effect.id == effect_id, Effect.state.in_(DOUBTFUL))
    error = {"class": "unknown", "code": "never_known", "message": NEVER_KNOWN, "service": None}
    values = {"state": EffectState.UNKNOWN, "settled_at": now, "error": error}
    await session.execute(unknown.values(**values))


async def touched_lanes(session: AsyncSession, deployment_id: UUID) -> frozenset[UUID]:
    """The lanes whose assignment was sent, whatever became of it: the ones a rollback must act on."""
    query = select(Effect.lane_id).where(
        Effect.deployment_id == deployment_id, Effect.action == Action.ASSIGN, Effect.state.in_(TOUCHED)
    )
    return frozenset(lane_id for lane_id in await session.scalars(query) if lane_id is not None)


async def page(
    session: AsyncSession, deployment_id: UUID, *, after: UUID | None, limit: int
) -> tuple[Sequence[Effect], UUID | None]:
    """Up to ``limit`` effects in the order they were planned, and the id to go on after, None at the end."""
    query = select(Effect).where(Effect.deployment_id == deployment_id)
    if after is not None:
        query = query.where(Effect.id > after)
    rows = (await session.scalars(query.order_by(Effect.id).limit(limit + 1))).all()
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None
