# SPDX-License-Identifier: Apache-2.0
"""The fleet document, and a fleet of 100,000 devices."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from sandbox.fleet import Fleet
from sandbox.journal import Journal
from sandbox.plan import FleetDocument, Software
from tests.sandbox.tenant import Clock, Tenant


def test_by_default_about_1200_devices_succeed(tenant: Tenant) -> None:
    fleet = tenant.control("fleet")

    devices = {name: ring["devices"] for name, ring in fleet["rings"].items()}
    assert devices == {"LAB": 10, "CANARY": 80, "PILOT": 160, "DEPARTMENT": 350, "GLOBAL": 600}
    assert {(ring["fail"], ring["offline"], *ring["delay"]) for ring in fleet["rings"].values()} == {
        (0.0, 0.0, 0.5, 3.0)
    }
    assert len({ring["ref"] for ring in fleet["rings"].values()}) == 5


def test_what_is_left_out_stays_and_what_was_read_may_be_put_back(tenant: Tenant) -> None:
    before = tenant.control("fleet")
    canary = {"devices": 40, "fail": 0.5, "offline": 0.1, "delay": [1.0, 2.0]}

    after = tenant.control("fleet", {"seed": 9, "rings": {"CANARY": canary}})

    assert after["seed"] == 9
    assert canary.items() <= after["rings"]["CANARY"].items()
    assert {**after["rings"], "CANARY": None} == {**before["rings"], "CANARY": None}
    assert tenant.control("fleet", after) == after
    assert tenant.control("fleet", before) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"rings": {"MOON": {"devices": 1}}},
        {"rings": {"LAB": {"devices": -1}}},
        {"rings": {"LAB": {"devices": 1, "fail": 1.5}}},
        {"rings": {"LAB": {"devices": 1, "fail": 0.6, "offline": 0.6}}},
        {"rings": {"LAB": {"delay": [3.0, 1.0]}}},
        {"rings": {"LAB": {"invented": 1}}},
        {"apps": {"Thing": {"LAB": {"devices": 1}}}},
        {"invented": 1},
        [],
    ],
)
def test_a_document_that_makes_no_sense_is_refused_with_the_reason(tenant: Tenant, wrong: Any) -> None:
    before = tenant.control("fleet")

    answer = tenant.http.put("/_sandbox/fleet", json=wrong)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"]
    assert tenant.control("fleet") == before


def test_another_seed_picks_other_devices_but_as_many(tenant: Tenant, clock: Clock) -> None:
    failed = []
    for name, seed in {"One": 1, "Two": 2, "Three": 1}.items():
        tenant.control("fleet", {"seed": seed, "rings": {"CANARY": {"fail": 0.5}}})
        app_id = tenant.publish(name)
        tenant.assign(app_id, "CANARY")
        clock.advance(4)
        rows = tenant.report(app_id, "DeviceName", "InstallState")["Values"]
        failed.append({device for device, state in rows if state == 2})

    assert [len(devices) for devices in failed] == [40, 40, 40]
    assert failed[0] == failed[2] != failed[1]


def test_devices_that_join_later_check_in_too(tenant: Tenant, clock: Clock) -> None:
    app_id = tenant.publish()
    tenant.assign(app_id, "LAB")
    clock.advance(4)

    tenant.control("fleet", {"rings": {"LAB": {"devices": 15}}})

    assert tenant.states(app_id) == {"Installed": 10, "Pending install": 5}
    clock.advance(4)
    assert tenant.states(app_id) == {"Installed": 15}


def test_an_empty_ring_has_no_devices(tenant: Tenant, clock: Clock) -> None:
    tenant.control("fleet", {"rings": {"LAB": {"devices": 0}}})
    app_id = tenant.publish()

    assert tenant.assign(app_id, "LAB").status_code == 201

    assert tenant.report(app_id)["TotalRowCount"] == 0
    assert tenant.graph.get(f"/groups/{tenant.group('LAB')}/transitiveMembers").json()["value"] == []


def test_delays_are_scaled(clock: Clock) -> None:
    fleet = make_fleet(clock, scale=10.0)
    fleet.direct(Software("a", "Thing", "1"), {"LAB": "install"})

    clock.advance(4.9)
    assert installed(fleet) == 0
    clock.advance(25.1)
    assert installed(fleet) == 10


def test_one_version_of_a_product_may_be_the_bad_one(clock: Clock) -> None:
    fleet = make_fleet(clock)
    bad = {"apps": {"Thing": {"LAB": {"fail": 0.5}}, "Thing 1": {"LAB": {}}}}
    fleet.replan(FleetDocument.model_validate(bad))

    fleet.direct(Software("a", "Thing", "1"), {"LAB": "install"})
    clock.advance(4)
    of_the_good_one = installed(fleet)
    fleet.direct(Software("b", "Thing", "2"), {"LAB": "install"})
    clock.advance(4)

    assert of_the_good_one == 10
    lives = fleet.lives("Thing", "LAB", list(fleet.devices("LAB")))
    assert sum(bool(life.failed) for life in lives) == 5


def make_fleet(clock: Clock, *, scale: float = 1.0) -> Fleet:
    journal = Journal(None)
    return Fleet(plans=journal.table("plans"), orders=journal.table("orders"), clock=clock, scale=scale)


def installed(fleet: Fleet) -> int:
    lives = fleet.lives("Thing", "LAB", list(fleet.devices("LAB")))
    return sum(life.installed is not None for life in lives)


def test_a_page_of_a_ring_of_100000_devices_is_worked_out_alone(clock: Clock) -> None:
    fleet = make_fleet(clock)
    document = {"rings": {"GLOBAL": {"devices": 100_000, "fail": 0.01, "offline": 0.02}}}
    fleet.replan(FleetDocument.model_validate(document))
    fleet.direct(Software("a", "Thing", "1"), {"GLOBAL": "install"})
    clock.advance(10)
    list(fleet.lives("Thing", "GLOBAL", list(fleet.devices("GLOBAL", top=1))))  # ranks the ring, once

    with counted_calls() as for_page:
        page = list(fleet.lives("Thing", "GLOBAL", list(fleet.devices("GLOBAL", skip=50_000, top=1000))))
    everybody = list(fleet.lives("Thing", "GLOBAL", list(fleet.devices("GLOBAL"))))

    assert [life.steps for life in everybody[50_000:51_000]] == [life.steps for life in page]
    assert sum(life.installed is not None for life in everybody) == 97_000
    assert sum(bool(life.failed) for life in everybody) == 1_000
    assert 1000 < for_page.total() < 100_000, for_page


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """How often Python's functions, by their names, were called: work that no busy machine makes more."""
    calls, before = Counter[str](), sys.getprofile()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)
