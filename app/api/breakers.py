# SPDX-License-Identifier: Apache-2.0
"""Breakers: who is kept away from which service, why, until when; and what operators may do about it."""

from datetime import datetime, timedelta
from typing import Annotated, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Path
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import CallDep, RuntimeDep, SessionDep
from app.api.paging import CursorKey, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import MAX_COUNT, Command, Count, Instant, Label, Message, Object, Shown, as_json
from app.domain import breakers
from app.domain.breakers import Order
from app.errors import CannotIsolate, FieldError, Invalid, NotFound
from app.resilience import SERVICES, BreakerState, BreakerStatus
from app.resilience.classify import DATABASE
from app.resilience.status import FORCED, ClientPolicy, StandingOrder
from app.security import Permission

router = APIRouter(prefix=V1 + "/breakers", tags=["breakers"], route_class=Route)

IN_ORDER: CursorKey[str] = CursorKey(str)
NEWEST: CursorKey[UUID] = CursorKey(UUID)
LONGEST_ORDER = timedelta(days=366)
SAME_MOMENT = timedelta(seconds=1)
CLOSED = BreakerState.CLOSED.value

ServiceName = Annotated[str, Path(max_length=100, description="The service, as in the list of breakers.")]
Seconds = Annotated[float, Field(ge=0, le=MAX_COUNT)]


class ClientRead(Shown):
    """How one client of the process that answers calls the service: how many at once, how patiently."""

    max_concurrency: Count
    max_waiting: Count
    attempts: Count
    shortest_wait: Seconds
    longest_wait: Seconds
    attempt_timeout: Seconds
    total_timeout: Seconds

    @classmethod
    def of(cls, client: ClientPolicy) -> Self:
        """What is shown of a client."""
        profile = client.profile
        return cls(
            max_concurrency=client.max_concurrency,
            max_waiting=client.max_waiting,
            attempts=profile.attempts,
            shortest_wait=profile.shortest,
            longest_wait=profile.longest,
            attempt_timeout=profile.attempt_timeout,
            total_timeout=profile.total,
        )


class PolicyRead(Shown):
    """What is in force: when the breaker opens (`failure_rate` of at least `minimum_calls` in `window`)."""

    fail_max: Count
    reset_timeout: Seconds
    failure_rate: Annotated[float, Field(ge=0, le=1)]
    minimum_calls: Count
    window: Seconds
    quorum: Count
    clients: Annotated[list[ClientRead], Field(max_length=100)]


class BreakerRead(Shown):
    """A service's breaker as all processes see it; `open_in`: those that keep away on their own."""

    service: Label
    state: BreakerState
    fail_counter: Count
    fail_max: Count
    reset_timeout: Seconds
    opened_at: datetime | None
    retry_at: datetime | None
    last_error: Message | None
    open_in: Annotated[list[Label], Field(max_length=10_000)]
    actor: Label | None
    reason: Message | None
    expires_at: datetime | None
    throttled_until: datetime | None
    policy: PolicyRead

    @classmethod
    def of(cls, status: BreakerStatus) -> Self:
        """What is shown of a breaker."""
        policy = status.policy
        plain = {name: getattr(status, name) for name in cls.model_fields if name != "policy"}
        clients = [ClientRead.of(client) for client in status.clients]
        numbers = {name: getattr(policy, name) for name in PolicyRead.model_fields if name != "clients"}
        return cls(**plain | {"open_in": list(status.open_in)}, policy=PolicyRead(**numbers, clients=clients))


class BreakerPage(Page[BreakerRead]):
    """Some breakers, and where to go on."""


class BreakerOrder(Command):
    """An order that lasts; without `expires_at` until another one ends it."""

    expires_at: Instant | None = None


class BreakerEventRead(Shown):
    """What an operator ordered of a service."""

    id: UUID
    type: Label
    actor: Label
    at: datetime
    before: Object | None
    after: Object | None
    correlation_id: UUID


class BreakerEventPage(Page[BreakerEventRead]):
    """Some orders, newest first, and where to go on."""


@router.get("", response_model=BreakerPage, summary="List breakers")
@requires(Permission.READ)
async def list_breakers(runtime: RuntimeDep, page: PageDep) -> Response:
    """Every service, from the record that all processes share; makes no call."""
    known, after = list(SERVICES), IN_ORDER.decode(page)
    rest = known[known.index(after) + 1 :] if after in known else known
    shown = rest[: page.limit]
    statuses = {status.service: status for status in await runtime.breakers.statuses()}
    following = shown[-1] if len(rest) > page.limit else None
    items = [BreakerRead.of(statuses[service]) for service in shown]
    return as_json(BreakerPage(items=items, next_cursor=IN_ORDER.encode(following, page)))


@router.get("/{service}", response_model=BreakerRead, summary="Read a breaker")
@requires(Permission.READ)
async def read_breaker(service: ServiceName, runtime: RuntimeDep) -> Response:
    """The state that all processes share, and the policy in force."""
    return as_json(BreakerRead.of(await runtime.breakers.status(known(service))))


@router.get("/{service}/events", response_model=BreakerEventPage, summary="Read a breaker's history")
@requires(Permission.READ)
async def list_breaker_events(service: ServiceName, session: SessionDep, page: PageDep) -> Response:
    """What operators ordered of the service, newest first."""
    rows = await breakers.page(session, known(service), before=NEWEST.decode(page), limit=page.limit + 1)
    items = [BreakerEventRead.model_validate(row) for row in rows[: page.limit]]
    following = items[-1].id if len(rows) > page.limit else None
    return as_json(BreakerEventPage(items=items, next_cursor=NEWEST.encode(following, page)))


class Orders:
    """How an order of this call is written down and given."""

    def __init__(self, session: SessionDep, runtime: RuntimeDep, call: CallDep) -> None:
        self._session = session
        self._breakers = runtime.breakers
        self._clock = runtime.clock
        self._call = call

    async def status(self, service: str) -> BreakerStatus:
        """How the service stands.

        Raises:
            NotFound: there is no such service.
        """
        return await self._breakers.status(known(service))

    def lasting(self, state: BreakerState, body: BreakerOrder | None) -> Order:
        """What is ordered.

        Raises:
            Invalid: it would be over already, or last for more than a year.
        """
        ends = body.expires_at if body else None
        if ends is not None and not self._clock() < ends <= self._clock() + LONGEST_ORDER:
            wrong = FieldError("/expires_at", "must lie in the future, within a year")
            raise Invalid("the order breaks a rule", wrong)
        return Order(state.value, body.reason if body else None, ends)

    async def carry_out(self, kind: str, before: BreakerStatus, order: Order) -> Response:
        """Write the order down, then give it to all processes; where that fails nothing is written."""
        service, actor = before.service, self._call.actor.name
        await breakers.ordered(
            self._session,
            service,
            kind,
            before=Order(before.state.value, before.reason, before.expires_at),
            after=order,
            actor=actor,
            correlation_id=self._call.correlation_id,
            now=self._clock(),
        )
        if order.state not in breakers.STANDING:
            await breakers.let_go(self._session, service)
        given = StandingOrder(service, BreakerState(order.state), actor, order.reason, order.expires_at)
        return as_json(BreakerRead.of(await self._breakers.give(given)), 202)


OrdersDep = Annotated[Orders, Depends(scope="function")]


@router.post("/{service}/reset", status_code=202, response_model=BreakerRead, summary="Reset a breaker")
@requires(Permission.BREAKER_COMMAND)
async def reset_breaker(service: ServiceName, orders: OrdersDep, body: Command | None = None) -> Response:
    """Close it in all processes, forget the failures, end any order; work that waited goes on at once.

    Given also where nothing is known to fail: a process may keep itself away that has not told so yet.
    """
    now = await orders.status(service)
    return await orders.carry_out("breaker.reset", now, Order(CLOSED, body.reason if body else None))


@router.post("/{service}/isolate", status_code=202, response_model=BreakerRead, summary="Isolate a service")
@requires(Permission.BREAKER_COMMAND)
async def isolate_breaker(
    service: ServiceName, orders: OrdersDep, body: BreakerOrder | None = None
) -> Response:
    """Keep every caller of every process away, until it is enabled or the order runs out; work waits."""
    if service == DATABASE:
        raise CannotIsolate("without the database nothing could be ordered any more, not even its return")
    now, order = await orders.status(service), orders.lasting(BreakerState.ISOLATED, body)
    if is_in_force(order, now):
        return as_json(BreakerRead.of(now), 202)
    return await orders.carry_out("breaker.isolated", now, order)


@router.post("/{service}/disable", status_code=202, response_model=BreakerRead, summary="Disable a breaker")
@requires(Permission.BREAKER_COMMAND)
async def disable_breaker(
    service: ServiceName, orders: OrdersDep, body: BreakerOrder | None = None
) -> Response:
    """Let everybody through whatever fails, until it is enabled or the order runs out."""
    now, order = await orders.status(service), orders.lasting(BreakerState.DISABLED, body)
    if is_in_force(order, now):
        return as_json(BreakerRead.of(now), 202)
    return await orders.carry_out("breaker.disabled", now, order)


@router.post("/{service}/enable", status_code=202, response_model=BreakerRead, summary="Enable a breaker")
@requires(Permission.BREAKER_COMMAND)
async def enable_breaker(service: ServiceName, orders: OrdersDep, body: Command | None = None) -> Response:
    """End an isolation or a disabling, of which there may be none; work that waited goes on at once."""
    now = await orders.status(service)
    if now.state not in FORCED:
        return as_json(BreakerRead.of(now), 202)
    return await orders.carry_out("breaker.enabled", now, Order(CLOSED, body.reason if body else None))


def known(service: str) -> str:
    """The service, if there is one of that name.

    Raises:
        NotFound: the detail lists the known ones.
    """
    if service not in SERVICES:
        raise NotFound(f"there is no service {service[:100]!r}; known are {', '.join(SERVICES)}")
    return service


def is_in_force(order: Order, now: BreakerStatus) -> bool:
    """Whether the same was ordered before: its end is kept to a fraction of a second only."""
    if (now.state.value, now.reason) != (order.state, order.reason):
        return False
    if now.expires_at is None or order.expires_at is None:
        return now.expires_at is order.expires_at
    return abs(now.expires_at - order.expires_at) < SAME_MOMENT
