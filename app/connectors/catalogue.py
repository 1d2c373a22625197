# SPDX-License-Identifier: Apache-2.0
"""Which device managers this product speaks to, and how a connector is made of its settings."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from app.connectors.ansible import Ansible
from app.connectors.contract import Connector, Manifest, Plane
from app.connectors.intune import Intune
from app.connectors.jamf import Jamf
from app.connectors.landscape import Landscape
from app.connectors.sccm import Sccm
from app.connectors.services import Services


class OpenConnector(Connector, Protocol):
    """A connector that holds connections."""

    settings_model: ClassVar[type[BaseModel]]

    def __init__(self, settings: Any, services: Services) -> None: ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


VENDORS: tuple[type[OpenConnector], ...] = (Intune, Jamf, Sccm, Landscape, Ansible)
BY_PLANE: Mapping[Plane, type[OpenConnector]] = MappingProxyType(
    {vendor.manifest.plane: vendor for vendor in VENDORS}
)
MANIFESTS: Mapping[Plane, Manifest] = MappingProxyType(
    {vendor.manifest.plane: vendor.manifest for vendor in VENDORS}
)

SANDBOX_CLIENT_ID = "sandbox"
SANDBOX_CLIENT_SECRET = "sandbox-secret"  # noqa: S105 - the sandbox's published demo credentials


class MissingSetting(Exception):
    """A plane cannot be built: ``setting`` is the environment variable to set or mend."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting} {reason}")
        self.setting = setting


@dataclass(frozen=True, slots=True)
class Planes:
    """The connectors that can be used, and for each other plane of the catalogue what is missing."""

    connectors: Mapping[Plane, Connector]
    unconfigured: Mapping[Plane, str]


def build(plane: Plane, settings: Mapping[str, SecretStr | str], services: Services) -> OpenConnector:
    """The connector of a plane; nothing is connected yet.

    Raises:
        MissingSetting: settings are missing, unknown or wrong; all of them are named.
    """
    vendor = BY_PLANE[plane]
    plain = {name: _plain(value) for name, value in settings.items()}
    try:
        checked = vendor.settings_model.model_validate(plain)
    except ValidationError as error:
        first, *others = [
            _wrong(plane, found) for found in error.errors(include_input=False, include_url=False)
        ]
        also = "".join(f"; {name} {reason}" for name, reason in others)
        raise MissingSetting(first[0], first[1] + also) from None
    return vendor(checked, services)


def _wrong(plane: Plane, found: ErrorDetails) -> tuple[str, str]:
    """A setting's variable, and what is wrong with it."""
    reasons = {"missing": "is not set", "extra_forbidden": "is no setting of this plane"}
    reason = reasons.get(found["type"], f"is wrong: {found['msg']}")
    if found["type"] == "not_enough":  # of several settings together
        return setting_name(plane, found["ctx"]["setting"]), f"is not set: {found['msg']}"
    return setting_name(plane, str(found["loc"][0])), reason


def _plain(value: SecretStr | str) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def setting_name(plane: Plane, name: str) -> str:
    """The environment variable of a plane's setting."""
    return f"EUCORA_PLANES__{plane}__{name}".upper()


def sandbox_settings(plane: Plane, sandbox_url: str) -> Mapping[str, str]:
    """The settings that point a plane at the sandbox, with its demo credentials."""
    base = f"{sandbox_url.rstrip('/')}/{plane}"
    settings = {
        Plane.INTUNE: {
            "base_url": f"{base}/v1.0",
            "token_url": f"{base}/oauth2/v2.0/token",
            "client_id": SANDBOX_CLIENT_ID,
            "client_secret": SANDBOX_CLIENT_SECRET,
            "poll_interval": "0.1",
        },
        Plane.JAMF: {
            "base_url": base,
            "client_id": SANDBOX_CLIENT_ID,
            "client_secret": SANDBOX_CLIENT_SECRET,
            "poll_interval": "0.1",
        },
        Plane.SCCM: {
            "base_url": f"{base}/AdminService",
            "username": rf"SANDBOX\{SANDBOX_CLIENT_ID}",
            "password": SANDBOX_CLIENT_SECRET,
            "auth": "ntlm",
        },
        Plane.LANDSCAPE: {
            "base_url": f"{base}/api",
            "access_key": SANDBOX_CLIENT_ID,
            "secret_key": SANDBOX_CLIENT_SECRET,
            "poll_interval": "0.1",
        },
        Plane.ANSIBLE: {
            "base_url": f"{base}/api/v2",
            "token": SANDBOX_CLIENT_SECRET,
            "poll_interval": "0.1",
        },
    }
    return settings[plane]


def is_all_sandbox(planes: Mapping[str, Mapping[str, SecretStr]]) -> bool:
    """Whether no plane is configured by the operator, so that only the sandbox's are left."""
    return not any(planes.values())


@asynccontextmanager
async def open_planes(
    planes: Mapping[str, Mapping[str, SecretStr]], sandbox_url: str | None, services: Services
) -> AsyncIterator[Planes]:
    """Build every plane that has settings, or the sandbox's in their place; close them at the end."""
    connectors: dict[Plane, Connector] = {}
    unconfigured: dict[Plane, str] = {}
    async with AsyncExitStack() as stack:
        for plane in BY_PLANE:
            own = planes.get(plane.value, {})
            settings = own or (sandbox_settings(plane, sandbox_url) if sandbox_url else {})
            try:
                connector = build(plane, settings, services)
            except MissingSetting as error:
                unconfigured[plane] = str(error)
            else:
                stack.push_async_callback(connector.aclose)
                connectors[plane] = connector
        yield Planes(MappingProxyType(connectors), MappingProxyType(unconfigured))
