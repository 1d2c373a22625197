# SPDX-License-Identifier: Apache-2.0
"""What can be installed, by kind: the request schema and the connectors' input are the same types."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

TEXT_FORM = r"^[^\x00-\x1f\x7f]+$"
URI_FORM = r"^(https|file)://[^\x00-\x20\x7f]+$"
SHA256_FORM = r"^[0-9a-fA-F]{64}$"
Text = Annotated[str, Field(min_length=1, max_length=1000, pattern=TEXT_FORM)]
Uri = Annotated[str, Field(min_length=1, max_length=2000, pattern=URI_FORM)]
Sha256 = Annotated[str, Field(pattern=SHA256_FORM, min_length=64, max_length=64)]


class PackageKind(StrEnum):
    """The kinds of package; each plane's manifest says which it can install."""

    WIN32 = "win32"
    MSI = "msi"
    PKG = "pkg"
    DEB = "deb"
    PLAYBOOK = "playbook"
    APPLICATION = "application"


class PackageModel(BaseModel):
    """Strict about names: an unknown field is an error, not a typo that is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileDetection(PackageModel):
    """Installed when this file is there, in this version or a newer one if ``version`` is given."""

    type: Literal["file"]
    path: Text
    name: Text
    version: Text | None = None


class RegistryDetection(PackageModel):
    """Installed when this registry key, or this value of it, is there; equal to ``value`` if given."""

    type: Literal["registry"]
    key: Text
    value_name: Text | None = None
    value: Text | None = None


class ProductCodeDetection(PackageModel):
    """Installed when Windows Installer knows the code, at ``version`` or newer if that is given."""

    type: Literal["product_code"]
    product_code: Text
    version: Text | None = None


Detection = Annotated[FileDetection | RegistryDetection | ProductCodeDetection, Field(discriminator="type")]


class Win32Package(PackageModel):
    """A Windows installer with its own commands. ``setup_file`` defaults to the file name in ``uri``."""

    kind: Literal[PackageKind.WIN32]
    uri: Uri
    sha256: Sha256
    install_command: Text
    uninstall_command: Text
    detection: Detection
    setup_file: Text | None = None


class MsiPackage(PackageModel):
    """A Windows Installer package; the commands default to ``msiexec`` on the file or the product code."""

    kind: Literal[PackageKind.MSI]
    uri: Uri
    sha256: Sha256
    product_code: Text
    install_command: Text | None = None
    uninstall_command: Text | None = None


class PkgPackage(PackageModel):
    """A macOS installer package."""

    kind: Literal[PackageKind.PKG]
    uri: Uri
    sha256: Sha256
    bundle_id: Text
    uninstall_script: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None


class DebPackage(PackageModel):
    """A Debian package from the archives a computer already uses, pinned to the deployment's version."""

    kind: Literal[PackageKind.DEB]
    name: Text


class PlaybookPackage(PackageModel):
    """A job template of the automation controller."""

    kind: Literal[PackageKind.PLAYBOOK]
    job_template: Text
    rollback_job_template: Text | None = None
    extra_vars: Annotated[dict[str, Any], Field(max_length=100)] = Field(default_factory=dict)


class ApplicationPackage(PackageModel):
    """An application that the operator has packaged in Configuration Manager."""

    kind: Literal[PackageKind.APPLICATION]
    name: Text


Package = Annotated[
    Win32Package | MsiPackage | PkgPackage | DebPackage | PlaybookPackage | ApplicationPackage,
    Field(discriminator="kind"),
]
PACKAGE: TypeAdapter[Package] = TypeAdapter(Package)


def why_it_stays(package: Package) -> str | None:
    """Why no plane can remove what this package installs, None if one can: known without asking anybody."""
    if isinstance(package, PkgPackage) and package.uninstall_script is None:
        return "the package has no uninstall_script"
    if isinstance(package, PlaybookPackage) and package.rollback_job_template is None:
        return "the package names no rollback_job_template"
    return None
