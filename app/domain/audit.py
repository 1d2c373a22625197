# SPDX-License-Identifier: Apache-2.0
"""Whether the history is what it was: each deployment's chain of hashes, and checkpoints of where it stood.

An event's hash is SHA-256 over the hash before it (32 zero bytes before the first) and the UTF-8 text of the
JSON array of its columns, as PostgreSQL writes ``jsonb``. The database computes it when the event is added;
here it is computed again from what is stored. A chain that somebody rewrote from one event on is sound in
itself: checkpoints, once they were exported to where that somebody cannot write, tell.
"""

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.domain.history import Story
from app.domain.operations import Subject
from app.models import Deployment, EventCheckpoint, EventHead

GENESIS = bytes(32)
HEADS = 10_000
"""How many deployments one checkpoint covers; the rest follow in the next."""
PAGE = 1000

LINKS = text("""
    SELECT coalesce(deployment.id, event.deployment_id) AS deployment_id,
        deployment.event_sequence AS told, event.sequence, event.type, event.before, event.after, event.hash,
        jsonb_build_array(event.deployment_id, event.sequence, event.type, event.actor,
            to_char(event.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            event.before, event.after, event.correlation_id)::text AS content
    FROM deployments AS deployment FULL JOIN events AS event ON event.deployment_id = deployment.id
    ORDER BY 1, event.sequence
""")
NEW_HEADS = text("""
    SELECT deployment.id AS deployment_id, event.sequence, event.hash
    FROM deployments AS deployment
    JOIN events AS event ON event.deployment_id = deployment.id AND event.sequence = deployment.event_sequence
    WHERE NOT EXISTS (
        SELECT FROM event_heads AS head
        WHERE head.deployment_id = deployment.id AND head.sequence = deployment.event_sequence)
    ORDER BY deployment.id LIMIT :limit
""")
WRONG_HEADS = text("""
    SELECT head.checkpoint, head.deployment_id, head.sequence
    FROM event_heads AS head LEFT JOIN events AS event USING (deployment_id, sequence)
    WHERE event.hash IS DISTINCT FROM head.hash ORDER BY head.checkpoint, head.deployment_id
""")
NOT_AS_EXPORTED = text("""
    SELECT kept.deployment_id, kept.sequence
    FROM unnest(CAST(:deployments AS uuid[]), CAST(:sequences AS int[]), CAST(:hashes AS bytea[]))
        AS kept (deployment_id, sequence, hash)
    LEFT JOIN events AS event USING (deployment_id, sequence)
    WHERE event.hash IS DISTINCT FROM kept.hash ORDER BY kept.deployment_id, kept.sequence
""")
CHECKPOINT_LOCK = 0x65766E7473  # "evnts"


@dataclass(frozen=True, slots=True)
class Broken:
    """A link that does not hold: of which deployment (or checkpoint), at which sequence, and how."""

    subject: Subject
    sequence: int
    reason: str

    def __str__(self) -> str:
        return f"{self.subject.type} {self.subject.id}: broken at {self.sequence}: {self.reason}"


@dataclass(slots=True)
class Report:
    """What was looked at, and what does not hold; per deployment the first broken link."""

    deployments: int = 0
    events: int = 0
    checkpoints: int = 0
    exported: int = 0
    broken: list[Broken] = field(default_factory=list)


def link_hash(previous: bytes, content: str) -> bytes:
    """The hash of an event, or of a checkpoint, that follows ``previous``."""
    return hashlib.sha256(previous + content.encode()).digest()


@dataclass(slots=True)
class _Chain:
    """One deployment's events as they are read. ``told``: how many the deployment says there are."""

    deployment_id: UUID
    told: int | None
    hash: bytes = GENESIS
    story: Story = field(default_factory=Story)
    broken: Broken | None = None

    def add(self, row: Any) -> None:
        """Check the next event against all before it."""
        expected = self.story.sequence + 1
        if row.sequence != expected:
            self._break(expected, f"it is missing, the next one is {row.sequence}")
        self.hash = link_hash(self.hash, row.content)
        if row.hash != self.hash:
            self._break(row.sequence, "its content, or its place, is not what was recorded")
        self.story.tell(row)
        if self.story.broken_at is not None:
            self._break(self.story.broken_at, "it does not follow from what was told before")

    def end(self) -> None:
        """Nothing follows."""
        if self.told is None:
            self._break(1, "its deployment is gone")
        elif self.story.sequence != self.told:
            missing = min(self.story.sequence, self.told) + 1
            self._break(missing, f"{self.told} events were recorded, {self.story.sequence} are there")

    def _break(self, sequence: int, why: str) -> None:
        self.broken = self.broken or Broken(Subject("deployment", str(self.deployment_id)), sequence, why)


async def verify(session: AsyncSession, exported: AsyncIterator[Mapping[str, Any]] | None = None) -> Report:
    """Check every chain, every checkpoint, and the stored states; ``exported``: checkpoints kept elsewhere.

    Reads only. To be run in a transaction that sees one moment (REPEATABLE READ).
    """
    report, sound = Report(), list[_Chain]()
    async for chain in _chains(session):
        chain.end()
        report.deployments += 1
        report.events += chain.story.sequence
        if chain.broken is None:
            sound.append(chain)
        else:
            report.broken.append(chain.broken)
        if len(sound) == PAGE:
            report.broken += await _with_other_states(session, sound)
            sound.clear()
    report.broken += await _with_other_states(session, sound)
    await _verify_checkpoints(session, report)
    if exported is not None:
        await _compare_with_export(session, exported, report)
    return report


async def _chains(session: AsyncSession) -> AsyncIterator[_Chain]:
    """Every deployment with its events, in constant memory."""
    chain: _Chain | None = None
    rows = await session.stream(LINKS, execution_options={"yield_per": PAGE})
    async for row in rows:
        if chain is None or chain.deployment_id != row.deployment_id:
            if chain is not None:
                yield chain
            chain = _Chain(row.deployment_id, row.told)
        if row.sequence is not None:
            chain.add(row)
    if chain is not None:
        yield chain


async def _with_other_states(session: AsyncSession, chains: Sequence[_Chain]) -> list[Broken]:
    """Those of which the deployment's row, or a lane's, says something else than the events."""
    stories = {chain.deployment_id: chain.story for chain in chains}
    query = select(Deployment).where(Deployment.id.in_(stories)).options(selectinload(Deployment.lanes))
    broken = []
    for deployment in await session.scalars(query, execution_options={"populate_existing": True}):
        story = stories[deployment.id]
        if found := story.differences(deployment):
            why = f"the stored state is another: {'; '.join(found)}"
            broken.append(Broken(Subject("deployment", str(deployment.id)), story.sequence, why))
    session.expunge_all()
    return broken


async def checkpoint(session: AsyncSession, *, now: datetime) -> EventCheckpoint | None:
    """Write down where the histories stand that went on since the last checkpoint; None if none did.

    One at a time: others wait. At most ``HEADS`` deployments; call again while it gives one.
    """
    await session.execute(select(func.pg_advisory_xact_lock(CHECKPOINT_LOCK)))
    heads = (await session.execute(NEW_HEADS, {"limit": HEADS})).all()
    if not heads:
        return None
    last = await session.scalar(select(EventCheckpoint).order_by(EventCheckpoint.number.desc()).limit(1))
    number = 1 if last is None else last.number + 1
    lines = [_line(head.deployment_id, head.sequence, head.hash.hex()) for head in heads]
    new = EventCheckpoint(number=number, at=now, hash=_sealed(last.hash if last else GENESIS, number, lines))
    session.add(new)
    await session.flush()
    await session.execute(insert(EventHead), [{**head._asdict(), "checkpoint": number} for head in heads])
    return new


def _line(deployment_id: object, sequence: int, digest: str) -> str:
    """How a head enters the hash of its checkpoint."""
    return f"{deployment_id} {sequence} {digest}"


def _sealed(previous: bytes, number: int, lines: list[str]) -> bytes:
    return link_hash(previous, "\n".join([str(number), *lines]))


async def export(session: AsyncSession, *, after: int = 0) -> AsyncIterator[dict[str, Any]]:
    """The checkpoints behind number ``after`` with their heads, in order, as JSON documents."""
    query = select(EventCheckpoint).where(EventCheckpoint.number > after).order_by(EventCheckpoint.number)
    for found in await session.scalars(query):
        yield {
            "number": found.number,
            "at": found.at.isoformat(),
            "hash": found.hash.hex(),
            "heads": await _heads(session, found.number),
        }


async def _heads(session: AsyncSession, number: int) -> list[list[Any]]:
    """``[deployment, sequence, hash]`` of each head, in order."""
    query = select(EventHead).where(EventHead.checkpoint == number).order_by(EventHead.deployment_id)
    rows = (await session.scalars(query)).all()
    found = [[str(head.deployment_id), head.sequence, head.hash.hex()] for head in rows]
    session.expunge_all()
    return found


async def _verify_checkpoints(session: AsyncSession, report: Report) -> None:
    """The checkpoints' own chain, and each head against its event."""
    previous = GENESIS
    async for found in export(session):
        report.checkpoints += 1
        if found["number"] != report.checkpoints:
            report.broken.append(_bad_checkpoint(report.checkpoints, "it is missing"))
            return
        previous = _sealed(previous, found["number"], [_line(*head) for head in found["heads"]])
        if previous.hex() != found["hash"]:
            report.broken.append(_bad_checkpoint(found["number"], "it is not what was written"))
            return
    for wrong in await session.execute(WRONG_HEADS):
        why = f"it is not the event that checkpoint {wrong.checkpoint} saw"
        _add(report, Broken(Subject("deployment", str(wrong.deployment_id)), wrong.sequence, why))


def _bad_checkpoint(number: int, why: str) -> Broken:
    return Broken(Subject("checkpoint", str(number)), number, why)


def _add(report: Report, broken: Broken) -> None:
    """Keep the first broken link of each deployment only."""
    earlier = next((each for each in report.broken if each.subject == broken.subject), None)
    if earlier is None:
        report.broken.append(broken)
    elif broken.sequence < earlier.sequence:
        report.broken[report.broken.index(earlier)] = broken


async def _compare_with_export(
    session: AsyncSession, exported: AsyncIterator[Mapping[str, Any]], report: Report
) -> None:
    """Each exported checkpoint must still be there, and each of its heads must still be an event."""
    stored = {found.number: found.hash.hex() for found in await session.scalars(select(EventCheckpoint))}
    async for kept in exported:
        report.exported += 1
        if stored.get(kept["number"]) != kept["hash"]:
            _add(report, _bad_checkpoint(kept["number"], "the exported one is another"))
        for wrong in await session.execute(NOT_AS_EXPORTED, _columns(kept["heads"])):
            why = f"it is not the event that exported checkpoint {kept['number']} saw"
            _add(report, Broken(Subject("deployment", str(wrong.deployment_id)), wrong.sequence, why))


def _columns(heads: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    return {
        "deployments": [UUID(head[0]) for head in heads],
        "sequences": [head[1] for head in heads],
        "hashes": [bytes.fromhex(head[2]) for head in heads],
    }
