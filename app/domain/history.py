# SPDX-License-Identifier: Apache-2.0
"""What a deployment's events say of it: folding them gives its state. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.models import Deployment, LaneStatus

Told = Mapping[str, Any] | None
Place = tuple[str, str]


class Link(Protocol):
    """As much of an event as its story needs."""

    @property
    def sequence(self) -> int:
        """From 1, without gaps."""
        ...

    @property
    def type(self) -> str:
        """What happened."""
        ...

    @property
    def before(self) -> Told:
        """What was."""
        ...

    @property
    def after(self) -> Told:
        """What is from then on."""
        ...


@dataclass(slots=True)
class Story:
    """What has been told so far. Lanes, by ring and plane, that were never told of are PENDING.

    ``broken_at``: the first event whose ``before`` is not what had been told, or that does not follow.
    """

    sequence: int = 0
    status: str | None = None
    paused: bool = False
    lanes: dict[Place, str] = field(default_factory=dict)
    broken_at: int | None = None

    def tell(self, event: Link) -> None:
        """Add the next event."""
        before, after = event.before or {}, event.after or {}
        if event.sequence != self.sequence + 1 or not self._follows(event.type, before, after):
            self.broken_at = self.broken_at or event.sequence
        self.sequence = event.sequence
        if _moves_deployment(event.type, after):
            self.status = after["status"]
        if "paused" in after:
            self.paused = after["paused"]
        if _is_of_lane(event.type, after):
            self.lanes[_place(after)] = after["status"]

    def _follows(self, kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        if self.status is not None and _moves_deployment(kind, after) and before.get("status") != self.status:
            return False
        if "paused" in after and before.get("paused") is not self.paused:
            return False
        return not _is_of_lane(kind, after) or before.get("status") == self.lane(*_place(after))

    def lane(self, ring: str, plane: str) -> str:
        """What was told of a lane."""
        return self.lanes.get((ring, plane), LaneStatus.PENDING.value)

    def differences(self, deployment: Deployment) -> list[str]:
        """Where what is stored is not what was told, in words."""
        found = [
            *_compare("status", self.status, deployment.status.value),
            *_compare("paused", self.paused, deployment.paused),
        ]
        for lane in deployment.lanes:
            name = f"lane {lane.ring.value} on {lane.plane}"
            found += _compare(name, self.lane(lane.ring.value, lane.plane), lane.status.value)
        return found


def fold(events: Iterable[Link]) -> Story:
    """The story that these events, in order, tell."""
    story = Story()
    for event in events:
        story.tell(event)
    return story


def _moves_deployment(kind: str, after: Mapping[str, Any]) -> bool:
    return kind.startswith("deployment.") and "status" in after


def _is_of_lane(kind: str, after: Mapping[str, Any]) -> bool:
    return kind.startswith("lane.") and "status" in after


def _place(after: Mapping[str, Any]) -> Place:
    return after["ring"], after["plane"]


def _compare(name: str, told: object, stored: object) -> list[str]:
    return [] if told == stored else [f"{name} is {stored}, the events tell {told}"]
