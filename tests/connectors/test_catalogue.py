# SPDX-License-Identifier: Apache-2.0
"""Which planes can be used, and what is said of the others."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.connectors import catalogue
from app.connectors.catalogue import MissingSetting, build, open_planes, sandbox_settings
from app.connectors.contract import Plane
from app.connectors.intune import Intune
from app.connectors.services import Services

OWN = {
    "token_url": SecretStr("https://login.example/token"),
    "client_id": SecretStr("me"),
    "client_secret": SecretStr("hidden"),
}


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(spool=tmp_path)


@pytest.mark.parametrize("missing", ["token_url", "client_id", "client_secret"])
def test_a_missing_setting_is_named(services: Services, missing: str) -> None:
    rest = {name: value for name, value in OWN.items() if name != missing}

    with pytest.raises(MissingSetting, match="is not set") as raised:
        build(Plane.INTUNE, rest, services)

    assert raised.value.setting == f"EUCORA_PLANES__INTUNE__{missing.upper()}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("clientid", "x"), ("base_url", "ftp://x"), ("block_bytes", "some"), ("client_secret", "")],
)
def test_a_wrong_setting_is_named_without_its_value(services: Services, name: str, value: str) -> None:
    with pytest.raises(MissingSetting, match=r"is wrong|is no setting of this plane") as raised:
        build(Plane.INTUNE, OWN | {name: SecretStr(value)}, services)

    assert raised.value.setting == f"EUCORA_PLANES__INTUNE__{name.upper()}"
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("plane", "given", "setting", "told"),
    [
        (Plane.ANSIBLE, {"username": "me"}, "TOKEN", "set TOKEN, or USERNAME and PASSWORD"),
        (Plane.JAMF, {"client_id": "me"}, "CLIENT_ID", "set CLIENT_ID and CLIENT_SECRET, or USERNAME"),
        (Plane.LANDSCAPE, {"email": "me"}, "ACCESS_KEY", "set ACCESS_KEY and SECRET_KEY, or EMAIL"),
    ],
    ids=str,
)
def test_credentials_of_which_no_way_is_complete_say_what_would_do(
    *, services: Services, plane: Plane, given: dict[str, str], setting: str, told: str
) -> None:
    with pytest.raises(MissingSetting, match=told) as raised:
        build(plane, {"base_url": "https://plane.example", **given}, services)

    assert raised.value.setting == f"EUCORA_PLANES__{plane}__{setting}".upper()


async def test_own_settings_win_over_the_sandbox(services: Services) -> None:
    async with open_planes({"intune": OWN}, "http://127.0.0.1:1", services) as planes:
        assert planes.connectors[Plane.INTUNE].base_url == "https://graph.microsoft.com/v1.0"
        assert planes.unconfigured == {}


async def test_without_settings_the_sandbox_is_used_if_there_is_one(services: Services) -> None:
    async with open_planes({}, "http://127.0.0.1:9/", services) as planes:
        assert planes.connectors[Plane.INTUNE].base_url == "http://127.0.0.1:9/intune/v1.0"


async def test_without_either_the_plane_says_what_is_missing(services: Services) -> None:
    async with open_planes({}, None, services) as planes:
        assert planes.connectors == {}
        assert planes.unconfigured[Plane.INTUNE].startswith("EUCORA_PLANES__INTUNE__")


async def test_half_of_the_settings_are_not_replaced_by_the_sandbox(services: Services) -> None:
    async with open_planes(
        {"intune": {"client_id": SecretStr("me")}}, "http://127.0.0.1:9", services
    ) as planes:
        assert Plane.INTUNE not in planes.connectors
        assert "TOKEN_URL" in planes.unconfigured[Plane.INTUNE]


async def test_the_connectors_are_closed_at_the_end(services: Services) -> None:
    async with open_planes({}, "http://127.0.0.1:9", services) as planes:
        connector = planes.connectors[Plane.INTUNE]
        assert isinstance(connector, Intune)
    with pytest.raises(RuntimeError, match="closed"):
        await connector.check()


def test_the_catalogue_is_a_list_one_can_read() -> None:
    assert set(catalogue.BY_PLANE) == {vendor.manifest.plane for vendor in catalogue.VENDORS}
    assert catalogue.MANIFESTS[Plane.INTUNE].package_kinds == {"win32", "msi"}
    assert all(
        sandbox_settings(plane, "http://s")["base_url"].startswith(f"http://s/{plane}")
        for plane in catalogue.BY_PLANE
    )


def test_everything_that_is_wrong_with_a_plane_is_named_at_once(services: Services) -> None:
    with pytest.raises(MissingSetting) as raised:
        build(Plane.INTUNE, {"client_idd": "x", "client_id": "a"}, services)

    told = str(raised.value)
    for name in (
        "TOKEN_URL is not set",
        "CLIENT_SECRET is not set",
        "CLIENT_IDD is no setting of this plane",
    ):
        assert f"EUCORA_PLANES__INTUNE__{name}" in told
