# SPDX-License-Identifier: Apache-2.0
"""Landscape's activities: packages installed, upgraded, removed, one part for each computer concerned."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sandbox.fleet import Life
from sandbox.journal import Document
from sandbox.landscape_search import computer_id, computers, parse, rings
from sandbox.plan import Device, Ring, Software
from sandbox.plane import Plane
from sandbox.rest import Refused
from sandbox.witness import instant

FIRST_ID = 214
DELIVERY_SECONDS = 0.3
FOR_EVER = 1e9
VERBS = {"InstallPackages": "Install", "UpgradePackages": "Upgrade", "RemovePackages": "Remove"}
GOOD, BAD = {"succeeded"}, {"failed", "canceled"}


class Archive(BaseModel):
    """What the computers' archives have: the version by the package's name, and whether somebody approves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    packages: dict[str, str] = Field(default_factory=dict)
    approval: bool = False


DEFAULT_ARCHIVE = Archive(
    packages={"example-editor": "4.2.1-1", "example-agent": "2.6.0", "firefox": "143.0.1"}
)


class Activities:
    """All activities of the account."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._table = plane.table("activities")
        self._settings = plane.table("archive")
        self._counts: dict[int, tuple[int, int, int]] = {}

    @property
    def archive(self) -> Archive:
        """What is offered now."""
        stored = self._settings.get("archive")
        return DEFAULT_ARCHIVE if stored is None else Archive.model_validate(stored)

    def offer(self, archive: Archive) -> None:
        """Offer other packages; what a computer has it keeps."""
        self._settings.put("archive", archive.model_dump())
        for name, version in archive.packages.items():
            self._settings.put(f"{name}={version}", {"name": name, "version": version})

    def begin(
        self, action: str, names: list[str], query: str, creator: str, effect_key: str | None
    ) -> Document:
        """An activity for every computer that the action has something to do on."""
        if len(names) != 1:
            raise Refused(400, "the sandbox changes one package at a time")
        (name,), where, archive = names, rings(query, self._plane.fleet), self.archive
        if name not in archive.packages:
            raise Refused(404, f"UnknownPackages: {name}")
        number, now = FIRST_ID + len(self._table), self._plane.clock()
        row = {
            "id": number,
            "action": action,
            "package": name,
            "version": archive.packages[name],
            "query": query,
            "rings": list(where),
            "only": {ring: list(some) for ring, some in where.items() if some is not None},
            "creator": creator,
            "created": now,
            "approved": None if archive.approval else now,
            "canceled": None,
            "orders": {},
            "effect_key": effect_key,
        }
        return self._table.put(str(number), self._ordered(row) if row["approved"] is not None else row)

    def _ordered(self, row: Document) -> Document:
        """The fleet told; a removal ends what would install again."""
        fleet, name, now = self._plane.fleet, row["package"], self._plane.clock()
        if row["action"] == "RemovePackages":
            known = [each for each in self._settings.values() if each.get("name") == name]
            versions = {row["version"], *(each["version"] for each in known)}
            self._stop([other for other in self._table.values() if other["package"] == name], row["rings"])
        else:
            versions = {row["version"]}
        intent: Any = "uninstall" if row["action"] == "RemovePackages" else "install"
        orders = {
            ring: [
                fleet.begin(
                    Software(f"{name}={each}", name, each),
                    ring,
                    intent,
                    start=now,
                    seconds=FOR_EVER,
                    only=tuple(row["only"][ring]) if ring in row.get("only", ()) else None,
                ).id
                for each in sorted(versions)
            ]
            for ring in row["rings"]
        }
        return row | {"orders": orders}

    def _stop(self, rows: list[Document], where: list[Ring]) -> None:
        for row in rows:
            for ring, orders in row["orders"].items():
                if ring in where and row["action"] != "RemovePackages":
                    for order in orders:
                        self._plane.fleet.stop(order)

    def approve(self, number: str) -> Document:
        """Let an activity go ahead."""
        row = self.one(number)
        if row["approved"] is not None:
            raise Refused(400, f"{number} => Activity is not waiting for approval")
        now = self._plane.clock()
        return self._table.put(number, self._ordered(row | {"approved": now}))

    def one(self, number: str) -> Document:
        """An activity by its number."""
        row = self._table.get(number)
        if row is None:
            raise Refused(404, f"UnknownActivity: {number}")
        return row

    def find(self, query: str) -> Iterator[Document]:
        """The parts, or the activities themselves, that a query finds."""
        for clause in parse(query):
            given = dict(clause)
            if "parent-id" in given:
                row = self._table.get(given["parent-id"])
                found = iter(()) if row is None else self.children(row)
            else:
                found = (self.shown(row) for row in self._table.values() if str(row["id"]) == given.get("id"))
            yield from (part for part in found if given.get("status") in {None, part["activity_status"]})

    def cancel(self, query: str) -> list[int]:
        """Cancel all that a query finds, or nothing."""
        found = list(self.find(query))
        refused = [part for part in found if part["activity_status"] not in {"undelivered", "unapproved"}]
        if refused or not found:
            told = [f"{part['id']} => Activity cannot be canceled\n" for part in refused]
            raise Refused(400, "".join(told) or "No activities matched.\n")
        now = self._plane.clock()
        for number in {str(part["parent_id"]) for part in found}:
            row = self.one(number)
            self._stop([row], row["rings"])
            self._table.put(number, row | {"canceled": now})
        return [part["id"] for part in found]

    def parents(self) -> list[Document]:
        """All activities, the newest first."""
        return list(self._table.values())[::-1]

    def shown(self, row: Document) -> Document:
        """An activity as both APIs tell it; the older one writes some nulls as text."""
        return {
            "id": row["id"],
            "creation_time": instant(row["created"]),
            "creator": {"name": "Rollout Service", "email": row["creator"], "id": 7},
            "type": "ActivityGroup",
            "summary": f"{VERBS[row['action']]} packages {row['package']}",
            "completion_time": None,
            "parent_id": "None",
            "deliver_delay_window": 0,
            "result_text": None,
            "result_code": None,
            "activity_status": "undelivered" if row["approved"] is not None else "unapproved",
            "computer_id": "None",
        }

    def counted(self, row: Document) -> Document:
        """An activity with what became of its parts, as REST v2 lists it."""
        bad, good, total = self._count(row)
        told = {**self.shown(row), "parent_id": None, "computer": None}
        del told["computer_id"]
        over = bad + good == total
        told["activity_status"] = ("failed" if bad else "succeeded") if over else told["activity_status"]
        counts = {"good": good, "warning": 0, "bad": bad}
        return {**told, "children_count": total, "children_statuses": counts, "computer_count": total}

    def _count(self, row: Document) -> tuple[int, int, int]:
        """How many parts went badly, how many well, and how many there are; remembered once all are over."""
        if row["id"] in self._counts:
            return self._counts[row["id"]]
        statuses = [part["activity_status"] for part in self.children(row)]
        bad, good = sum(each in BAD for each in statuses), sum(each in GOOD for each in statuses)
        if bad + good == len(statuses):
            self._counts[row["id"]] = bad, good, len(statuses)
        return bad, good, len(statuses)

    def children(self, row: Document) -> Iterator[Document]:
        """The part of each computer that the action had something to do on when it was asked for."""
        fleet = self._plane.fleet
        for ring in row["rings"]:
            devices = list(fleet.concerned(ring, row.get("only", {})))
            before = fleet.lives(row["package"], ring, devices, until=row["created"])
            after = fleet.lives(row["package"], ring, devices)
            for device, earlier, life in zip(devices, before, after, strict=True):
                if concerns(row, earlier):
                    yield self._part(row, device, life)

    def _part(self, row: Document, device: Device, life: Life) -> Document:
        status, seen = self._status(row, device, life)
        done = status in {"succeeded", "failed"}
        failed = status == "failed"
        change = {"package": row["package"], "type": VERBS[row["action"]].lower(), "version": row["version"]}
        number = computer_id(device)
        return {
            "id": row["id"] * 10_000_000 + number,
            "creation_time": instant(row["created"]),
            "creator": {"name": "Rollout Service", "email": row["creator"], "id": 7},
            "type": "ChangePackagesRequest",
            "summary": f"{VERBS[row['action']]} package {row['package']}",
            "computer_id": number,
            "parent_id": row["id"],
            "activity_status": status,
            "result_text": "E: Unable to fetch some archives" if failed else ("Done." if done else "None"),
            "result_code": 100 if failed else None,
            "package_ids": [36],
            "modification_time": instant(row["created"] if seen is None else seen),
            "deliver_after_time": None,
            "approval_time": None,
            "delivery_time": None if seen is None else instant(seen),
            "completion_time": instant(seen) if done and seen is not None else None,
            "changes": [{**change, "complemented": False}] if status == "succeeded" else [],
        }

    def _status(self, row: Document, device: Device, life: Life) -> tuple[str, float | None]:
        if row["approved"] is None:
            return ("canceled" if row["canceled"] else "unapproved"), None
        orders = row["orders"].get(device.ring, [])
        heard = [life.seen[order] for order in orders if order in life.seen]
        steps = [step for step in life.steps if step.at >= row["approved"]]
        wanted = "uninstall" if row["action"] == "RemovePackages" else "install"
        ended = [step for step in steps if step.action in {wanted, "fail"}]
        if not heard and not ended:
            return ("canceled" if row["canceled"] else "undelivered"), None
        at = ended[0].at if ended else min(heard)
        if self._plane.clock() < at + DELIVERY_SECONDS * self._plane.scale:
            return "delivered", at
        good = not ended or any(step.action == wanted for step in ended)
        return ("succeeded" if good else "failed"), at

    def packages(self, names: list[str], query: str) -> list[Document]:
        """What each computer that a query finds has of packages, and could have."""
        archive, fleet = self.archive, self._plane.fleet
        found: list[Document] = []
        for name in (name for name in names if name in archive.packages):
            devices = list(computers(query, fleet))
            by_ring: dict[Ring, list[Device]] = {}
            for device in devices:
                by_ring.setdefault(device.ring, []).append(device)
            rows = [
                software_of(device, life, archive.packages[name])
                for ring, some in sorted(by_ring.items())
                for device, life in zip(some, fleet.lives(name, ring, some), strict=True)
            ]
            found.append({"id": 1143, "name": name, "summary": f"The package {name}", "computers": rows})
        return found


def concerns(row: Mapping[str, Any], life: Life) -> bool:
    """Whether an action had something to do on a computer."""
    has = None if life.installed is None else life.installed.version
    if row["action"] == "RemovePackages":
        return has is not None
    if row["action"] == "UpgradePackages":
        return has not in {None, row["version"]}
    return has is None


def software_of(device: Device, life: Life, offered: str) -> Document:
    """A package on one computer."""
    current = None if life.installed is None else life.installed.version
    return {
        "id": computer_id(device),
        "status": "available" if current is None else "installed",
        "current_version": current,
        "available_version": offered,
    }


def rows_of(found: Iterator[Document], *, offset: int, limit: int) -> list[Document]:
    """Some of them, without making the others."""
    return list(islice(found, offset, offset + limit))
