# SPDX-License-Identifier: Apache-2.0
"""A client that a generator makes of the document, as an integrator would use it."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
PACKAGE = "eucora_generated_client"


@dataclass(frozen=True, slots=True)
class GeneratedClient:
    """The generated package, and an authenticated client made with it."""

    connection: Any

    def submit(self, intent: dict[str, Any], *, idempotency_key: str) -> Any:
        """The accepted deployment."""
        body = _part("models").DeploymentCreate.from_dict(intent)
        return self.call("deployments.create_deployment", body=body, idempotency_key=idempotency_key)

    def read(self, deployment_id: Any) -> Any:
        """The deployment as it stands now."""
        return self.call("deployments.read_deployment", deployment_id=deployment_id)

    def call(self, operation: str, **arguments: Any) -> Any:
        """What the generated function of ``<tag>.<operation id>`` returns: a model, or a Problem."""
        return _part(f"api.{operation}").sync(client=self.connection, **arguments)


def _part(name: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.{name}")


def generate(folder: Path) -> None:
    """Make the package in ``folder``."""
    tools = Path(sys.executable).parent
    options = ["--path", str(DOCUMENT), "--meta", "none", "--fail-on-warning"]
    made = subprocess.run(
        [str(tools / "openapi-python-client"), "generate", *options, "--output-path", str(folder / PACKAGE)],
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
    )
    assert made.returncode == 0, made.stdout


@contextmanager
def generated_client(folder: Path, *, base_url: str, token: str) -> Iterator[GeneratedClient]:
    """Generate, import and connect; ``base_url`` has no path. Blocks: call it off the event loop."""
    generate(folder)
    sys.path.insert(0, str(folder))
    try:
        connection = importlib.import_module(PACKAGE).AuthenticatedClient(
            base_url=base_url, token=token, raise_on_unexpected_status=True
        )
        with connection:
            yield GeneratedClient(connection)
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
