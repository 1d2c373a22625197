# SPDX-License-Identifier: Apache-2.0
"""What this process logs, as it would stand on standard error."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from app import telemetry


@contextmanager
def captured_lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Logs as the process logs, but to where it can be read."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    telemetry.setup(process="api", stream=written)
    try:
        yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**configuration)
