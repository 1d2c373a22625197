# SPDX-License-Identifier: Apache-2.0
"""Failures by cause: what devices say of themselves, without what differs from device to device."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Ring

_HEX = r"[0-9A-Fa-f]"
FORMS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "<url>": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>()]+", re.IGNORECASE),
        "<id>": re.compile(rf"\{{?\b{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}\b\}}?"),
        "<time>": re.compile(
            r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?)?\b"
            r"|\b\d\d?:\d\d(?::\d\d)?(?:[.,]\d+)?(?: ?[AaPp][Mm])?\b"
            r"|\b\d\d?/\d\d?/\d{2,4}\b"
        ),
        "<ip>": re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"),
        "<path>": re.compile(
            r"\b[A-Za-z]:\\[^\s'\"<>|:;,]*|\\\\[^\s'\"<>|:;,]+|(?<![\w<>/])/[\w.@~+-]+(?:/[\w.@~+-]*)+"
        ),
        "<host>": re.compile(
            r"\b(?=[\w.-]*[A-Za-z])[A-Za-z0-9][A-Za-z0-9-]*(?:\.[A-Za-z0-9-]+)*\.(?:com|net|org|local|lan|"
            r"internal|corp|example|test|invalid)\b|\b[A-Za-z]+(?:-[A-Za-z0-9]+)*-?\d{2,}\b",
            re.IGNORECASE,
        ),
        "<n>": re.compile(r"(?<![\w.])\d{3,}(?![\w.])"),
    }
)
"""What is replaced in a message, in this order; codes as ``0x87D1041C`` and short numbers are the cause."""
KEPT = re.compile(rf"0x{_HEX}+")
LONGEST = 200


def normalise(message: str) -> str:
    """The cause in a message: the same for every device that failed for the same reason."""
    parts = KEPT.split(message)
    codes = KEPT.findall(message)
    cleaned = [_cleaned(part) for part in parts]
    joined = cleaned[0] + "".join(code.lower() + part for code, part in zip(codes, cleaned[1:], strict=True))
    return " ".join(joined.split())[:LONGEST].strip()


def _cleaned(part: str) -> str:
    for name, form in FORMS.items():
        part = form.sub(name, part)
    return part


@dataclass(frozen=True, slots=True)
class Signature:
    """One cause: how many devices failed for it, of how many that failed, and which lanes they are of."""

    cause: str
    devices: int
    of: int
    lanes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.devices} of {self.of}: {self.cause}"


GROUPS = text("""
    SELECT lane.ring::text AS ring, lane.plane, device.error_code,
        replace(device.detail, device.name, '<device>') AS detail, count(*) AS devices
    FROM ring_deployments AS lane JOIN device_results AS device ON device.lane_id = lane.id
    WHERE lane.deployment_id = :deployment AND device.state = 'FAILED' AND NOT device.late
        AND (CAST(:lane AS uuid) IS NULL OR lane.id = :lane)
    GROUP BY 1, 2, 3, 4
""")


async def of_failures(
    session: AsyncSession, deployment_id: UUID, *, lane_id: UUID | None = None
) -> list[Signature]:
    """Why devices of a deployment, or of one lane, failed; the commonest cause first."""
    rows = (await session.execute(GROUPS, {"deployment": deployment_id, "lane": lane_id})).all()
    counted: Counter[str] = Counter()
    lanes: dict[str, set[tuple[int, str]]] = {}
    for row in rows:
        cause = cause_of(row.error_code, row.detail)
        counted[cause] += row.devices
        place = (list(Ring).index(Ring(row.ring)), f"{row.ring}/{row.plane}")
        lanes.setdefault(cause, set()).add(place)
    ordered = sorted(counted.items(), key=lambda found: (-found[1], found[0]))
    return [
        Signature(cause, devices, counted.total(), tuple(name for _, name in sorted(lanes[cause])))
        for cause, devices in ordered
    ]


def cause_of(error_code: str | None, detail: str | None) -> str:
    """The vendor's code and the normalised message; a device that gave neither said nothing."""
    message = normalise(detail or "")
    if error_code and error_code.lower() not in message.lower():
        return f"{error_code}: {message}" if message else error_code
    return message or "no reason given"
