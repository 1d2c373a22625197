# SPDX-License-Identifier: Apache-2.0
"""What handlers are given: the service, the call, a session, an expected version. Nothing that decides."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from app import security, telemetry
from app.api.cache import Recent
from app.api.schema import Command
from app.api.streams import EventStreams, Feed, Place
from app.api.submissions import Submissions
from app.connectors.contract import Plane
from app.domain import accounts, idempotency, targets
from app.domain.accounts import Actor
from app.domain.idempotency import RequestKey, StoredAnswer
from app.domain.intents import KnownTarget
from app.errors import FieldError, Forbidden, Invalid, VersionMismatch
from app.models import Ring
from app.runtime import Runtime
from app.security import Permission

log = telemetry.logger(__name__)

Targets = Mapping[tuple[Plane, Ring], KnownTarget]
ENTITY_TAG = re.compile(r'"(\d{1,9})"')


class Service:
    """One API process: its runtime, what it read a moment ago, and the event streams it serves."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._streams: dict[Feed[Any], EventStreams[Any]] = {}
        self.submissions = Submissions(runtime)
        self.manifests = runtime.manifests
        self.actors: Recent[bytes, Actor] = Recent(self._read_actor)
        self.targets: Recent[None, Targets] = Recent(self._read_targets)
        secret = runtime.settings.bootstrap_token
        self._bootstrap = security.hash_token(secret.get_secret_value()) if secret else None

    def streams(self, feed: Feed[Place]) -> EventStreams[Place]:
        """The open streams that are fed so."""
        return self._streams.setdefault(feed, EventStreams(self.runtime, feed))

    def end_streams(self) -> None:
        """End every open stream: its client resumes elsewhere."""
        for streams in self._streams.values():
            streams.end()

    async def close_streams(self) -> None:
        """End every stream and stop reading."""
        for streams in self._streams.values():
            await streams.close()

    async def _read_actor(self, token_hash: bytes) -> Actor | None:
        if security.same_token(token_hash, self._bootstrap):
            return accounts.BOOTSTRAP
        async with self.runtime.autocommit() as connection:
            return await accounts.authenticate(connection, token_hash, self.runtime.clock())

    async def _read_targets(self, _: None) -> Targets:
        async with self.runtime.autocommit() as connection:
            return await targets.known(connection)


@dataclass(slots=True)
class Call:
    """One request of a known caller. ``key`` is there if it may be repeated; ``session`` once one is open."""

    actor: Actor
    correlation_id: UUID
    key: RequestKey | None = None
    session: AsyncSession | None = None
    after_commit: list[Callable[[], None]] = field(default_factory=list)

    def require(self, permission: Permission) -> None:
        """Ask for a permission beside the route's own.

        Raises:
            Forbidden: the caller's role does not have it.
        """
        if not security.allows(self.actor.role, permission):
            raise Forbidden(
                f"the role {self.actor.role.value} does not have the permission {permission.value}",
                permission=permission,
            )

    def tell(self, command: str, subject: object, given: Command | None) -> None:
        """Log a command on something that keeps no history of its own."""
        reason = given.reason if given else None
        log.info(command, subject=str(subject), actor=self.actor.name, reason=reason)


class Replayed(Exception):
    """The request was answered before; ``answer`` is what it got."""

    def __init__(self, answer: StoredAnswer) -> None:
        super().__init__()
        self.answer = answer


async def service(request: Request) -> Service:
    """The one of this process."""
    found: Service = request.app.state.service
    return found


async def runtime(request: Request) -> Runtime:
    """The one of this process."""
    found: Runtime = request.app.state.service.runtime
    return found


async def call(request: Request) -> Call:
    """What the route's admission found out."""
    found: Call = request.scope["call"]
    return found


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A transaction that is committed when the handler has returned, before the response leaves.

    Of two requests with one idempotency key the second waits here and then gets the answer of the first.

    Raises:
        Replayed: the request was answered before.
    """
    found: Call = request.scope["call"]
    async with request.app.state.service.runtime.transaction() as session:
        if found.key is not None and (answer := await idempotency.claim(session, found.key)):
            raise Replayed(answer)
        found.session = session
        yield session
    for follow in found.after_commit:
        follow()


async def expected_version(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            max_length=200,
            description="The `ETag` the command was decided on; another version answers 412.",
            examples=['"3"'],
        ),
    ] = None,
) -> int | None:
    """The version in ``If-Match``; None where any will do.

    Raises:
        VersionMismatch: no tag of ours, which therefore cannot match.
        Invalid: more than one tag.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    if if_match.count('"') > 2:
        raise Invalid(
            "If-Match holds several tags", FieldError("/header/If-Match", "must be one entity tag or *")
        )
    tag = ENTITY_TAG.fullmatch(if_match.strip())
    if tag is None:
        raise VersionMismatch("If-Match names no version of this resource")
    return int(tag[1])


class Order:
    """A command of this call: where it is carried out, and what it gives the domain (``by``).

    That is who gave it, when, and the version of the resource it was decided on.
    """

    def __init__(
        self,
        session: Annotated[AsyncSession, Depends(open_session, scope="function")],
        runtime: Annotated[Runtime, Depends(runtime)],
        call: Annotated[Call, Depends(call)],
        version: Annotated[int | None, Depends(expected_version)],
    ) -> None:
        self.session = session
        self.call = call
        self.runtime = runtime
        self.by: Mapping[str, Any] = {"actor": call.actor.name, "now": runtime.clock(), "version": version}


ServiceDep = Annotated[Service, Depends(service)]
RuntimeDep = Annotated[Runtime, Depends(runtime)]
CallDep = Annotated[Call, Depends(call)]
SessionDep = Annotated[AsyncSession, Depends(open_session, scope="function")]
ExpectedVersion = Annotated[int | None, Depends(expected_version)]
OrderDep = Annotated[Order, Depends(scope="function")]
