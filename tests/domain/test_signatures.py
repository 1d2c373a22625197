# SPDX-License-Identifier: Apache-2.0
"""Failure signatures: the same cause has the same words, whatever device, path, id or time it names."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import DeviceReport, InstallState
from app.domain import devices, signatures
from app.domain.signatures import normalise
from tests.domain.steps import S, push
from tests.factories import NOON, make_deployment

HOSTS = st.sampled_from(["LAB-0042", "pc17.corp.example.com", "DESKTOP-4F2K9Q12", "mac-mini-203.local"])
PATHS = st.sampled_from([r"C:\Users\anna\AppData\a.exe", "/var/log/install.log", r"\\srv1\share\b.msi"])
TIMES = st.datetimes().map(lambda at: at.isoformat(timespec="seconds") + "Z")
NUMBERS = st.integers(1000, 10**12).map(str)
IDS = st.uuids().map(str)


DEVICE = st.tuples(HOSTS, PATHS, TIMES, IDS, NUMBERS)


@given(DEVICE, DEVICE)
def test_what_differs_from_device_to_device_makes_no_difference(
    one: tuple[str, ...], another: tuple[str, ...]
) -> None:
    message = "{0} could not open {1} at {2} (job {3}, {4} bytes): download failed"

    first, second = (message.format(*part) for part in (one, another))

    assert normalise(first) == normalise(second)
    assert normalise(first).endswith("download failed")


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("The installer returned 0x87D1041C.", "The installer returned 0x87d1041c."),
        ("exit code 17 from https://a.example.com/x?id=3", "exit code 17 from <url>"),
        ("10.1.2.3:8080 refused the connection", "<ip> refused the connection"),
        ("exit code 1603", "exit code <n>"),
        ("  no   space\nleft ", "no space left"),
    ],
)
def test_codes_stay_and_the_rest_is_named(message: str, cause: str) -> None:
    assert normalise(message) == cause


def test_different_causes_stay_different() -> None:
    assert normalise("download failed on LAB-0001") != normalise("no space left on LAB-0001")
    assert normalise("error 0x80070643") != normalise("error 0x87D1041C")


async def test_failures_are_counted_by_cause_over_all_lanes(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    lane = deployment.lanes[0]
    names = [f"LAB-{number:04}" for number in range(86)]
    await push(session, lane, *names)
    reports = [
        DeviceReport(name, name, InstallState.FAILED, f"{name}: download failed", None) for name in names[:82]
    ]
    reports += [DeviceReport(name, name, InstallState.FAILED, None, "0x87D1041C") for name in names[82:]]
    await devices.store_reports(session, lane.id, reports, now=NOON + S)

    found = await signatures.of_failures(session, deployment.id)

    assert [str(signature) for signature in found] == [
        "82 of 86: <device>: download failed",
        "4 of 86: 0x87D1041C",
    ]
    assert {signature.lanes for signature in found} == {("LAB/intune",)}
    assert await signatures.of_failures(session, deployment.id, lane_id=UUID(int=0)) == []
