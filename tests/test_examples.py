# SPDX-License-Identifier: Apache-2.0
"""The examples can be submitted as they are."""

import hashlib
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app import examples
from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Plane
from app.connectors.packages import PACKAGE


@pytest.mark.parametrize("name", examples.names())
def test_each_plane_of_an_example_can_install_its_package(name: str, tmp_path: Path) -> None:
    intent = json.loads(examples.make(name, tmp_path).read_text())

    for plane in intent["planes"]:
        package = intent["packages"][plane] if "packages" in intent else intent["package"]
        assert PACKAGE.validate_python(package).kind in MANIFESTS[Plane(plane)].package_kinds
        if "uri" in package:
            content = Path(urlsplit(package["uri"]).path).read_bytes()
            assert hashlib.sha256(content).hexdigest() == package["sha256"]


def test_there_is_one_for_each_plane_and_one_that_spans_three() -> None:
    intents = [json.loads((examples.folder() / f"{name}.json").read_text()) for name in examples.names()]

    alone = {intent["planes"][0] for intent in intents if len(intent["planes"]) == 1}
    assert alone == {plane.value for plane in MANIFESTS}
    assert max(len(intent["planes"]) for intent in intents) == 3


def test_a_package_that_is_being_read_is_not_written_over(tmp_path: Path) -> None:
    examples.make("jamf-firefox", tmp_path)
    package = next(tmp_path.glob("*.pkg"))
    with package.open("rb") as reading:
        examples.make("jamf-firefox", tmp_path)

        assert not os.path.samestat(os.fstat(reading.fileno()), package.stat())
