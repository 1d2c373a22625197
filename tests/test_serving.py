# SPDX-License-Identifier: Apache-2.0
"""What a process that serves does not hold."""

import subprocess
import sys

import pytest

LOADED = """
import sys
from app import serving
serving.leave_out(serving.{left_out})
import {module}
print(*sorted({{name.partition('.')[0] for name, module in sys.modules.items() if module}}))
print(len([name for name in sys.modules if name.startswith('cryptography.hazmat')]))
"""


@pytest.mark.parametrize(
    ("module", "left_out"),
    [("workers.main", "OF_A_WORKER"), ("app.main", "TERMINALS")],
    ids=["worker", "api"],
)
def test_what_only_the_command_line_and_a_handshake_need_is_not_imported(module: str, left_out: str) -> None:
    program = LOADED.format(module=module, left_out=left_out)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    packages, ciphers = done.stdout.splitlines()

    assert not {"typer", "rich", "pygments", "spnego", "alembic"} & set(packages.split())
    assert ciphers == "0"


@pytest.mark.parametrize("command", [("worker",), ("api", "--port", "1")])
def test_settings_that_are_wrong_are_one_sentence_there_too(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *command],
        env={"EUCORA_WORKER__LEASE": "hunter2", "PYTHONPATH": "."},
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert "EUCORA_WORKER__LEASE" in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr
