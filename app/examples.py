# SPDX-License-Identifier: Apache-2.0
"""The examples: intents that can be submitted as they are, with the small package files they speak of."""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

PACKAGE_BYTES = 256 * 1024


def folder() -> Path:
    """Where the examples are: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "examples"
    return inside if inside.is_dir() else package.parent / "examples"


def names() -> list[str]:
    """What may be asked for."""
    return sorted(path.stem for path in folder().glob("*.json"))


def make(name: str, place: Path) -> Path:
    """Write an example with its package file into ``place``; the path of the intent. May be repeated.

    Raises:
        FileNotFoundError: there is no such example.
    """
    intent: dict[str, Any] = json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
    place.mkdir(parents=True, exist_ok=True)
    for package in [intent["package"]] if "package" in intent else intent["packages"].values():
        if "uri" in package:
            package["uri"] = make_package(package["uri"], place).as_uri()
    made = place / f"{name}.json"
    made.write_text(json.dumps(intent, indent=2) + "\n", encoding="utf-8")
    return made


def make_package(uri: str, place: Path) -> Path:
    """The file an example's ``uri`` names; its name decides its content, whose SHA-256 the example has.

    Put in place whole: a worker may be reading what was there.
    """
    file = place.resolve() / PurePosixPath(unquote(urlsplit(uri).path)).name
    draft = file.with_name(f"{file.name}.{uuid4().hex}.new")
    draft.write_bytes(hashlib.shake_256(file.name.encode()).digest(PACKAGE_BYTES))
    return draft.replace(file)
