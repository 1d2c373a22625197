# SPDX-License-Identifier: Apache-2.0
"""Everything breaks at once, for minutes; afterwards nothing is lost and nothing was done twice."""

import os
from collections import Counter
from pathlib import Path

import pytest

from app.client import Json
from tests.faults.storm import Proof, Size, Weather, open_storm, prove, weather_it
from tests.installation import World

FULL = Size(
    deployments=int(os.environ.get("EUCORA_TEST_STORM_DEPLOYMENTS", "300")),
    devices=int(os.environ.get("EUCORA_TEST_STORM_DEVICES", "20000")),
    workers=int(os.environ.get("EUCORA_TEST_STORM_WORKERS", "8")),
    seed=int(os.environ.get("EUCORA_TEST_STORM_SEED", "1")),
)
SMALL = Size(deployments=6, devices=300, workers=2, reset=1, within=240)


async def storm(folder: Path, size: Size) -> tuple[Weather, Proof]:
    async with open_storm(folder, size) as (world, crew):
        deployments, weather = await weather_it(world, crew, size)
        proof = await prove(world, deployments)
        for failed in [each for each in deployments if each["status"] != "COMPLETED"]:
            print(failed["app_name"], await why(world, failed))  # noqa: T201
    print(size, weather, proof, sep="\n")  # noqa: T201
    return weather, proof


async def why(world: World, deployment: Json) -> list[str]:
    """The reasons that its history gives."""
    told = await world.client.every(f"/deployments/{deployment['id']}/events")
    return [str(event["after"]["reason"]) for event in told if (event["after"] or {}).get("reason")]


def check(size: Size, proof: Proof) -> None:
    assert proof.statuses == Counter(COMPLETED=size.deployments)
    assert proof.fleet == size.devices
    assert (proof.failed_devices, proof.unsettled, proof.missing) == (0, 0, 0)
    assert (proof.strangers, proof.unknown_objects, proof.twice, proof.installed_twice) == (0, 0, 0, 0)
    assert (proof.gaps, proof.broken) == (0, 0)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_storm_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    weather, proof = await storm(tmp_path, FULL)

    check(FULL, proof)
    assert weather.kills >= 10
    assert (weather.emptied, weather.crashes) == (2, 1)


async def test_a_small_storm_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    weather, proof = await storm(tmp_path, SMALL)

    check(SMALL, proof)
    assert weather.kills >= 2
