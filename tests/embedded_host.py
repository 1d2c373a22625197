# SPDX-License-Identifier: Apache-2.0
"""Runs the embedded servers in a process of its own, for tests that kill it. Says a JSON line when ready."""

import asyncio
import json
import os
import sys
from pathlib import Path

from app.children import ChildFailed
from app.data_folder import open_data_folder
from app.embedded import embedded_postgres, embedded_valkey


def report(line: str) -> None:
    """Notes go where the test does not look for the JSON."""
    sys.stderr.write(f"{line}\n")


async def host(path: Path) -> None:
    """Serve until standard input ends."""
    with open_data_folder(path, report=report) as place:
        async with (
            embedded_postgres(place, report=report) as postgres,
            embedded_valkey(place, report=report) as valkey,
        ):
            state = {
                "postgres": postgres.url,
                "valkey": valkey.url,
                "pids": [postgres.child.pid, valkey.child.pid],
                "home": str(place.home),
                "parent": os.getpid(),
            }
            sys.stdout.write(f"{json.dumps(state)}\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    try:
        asyncio.run(host(Path(sys.argv[1])))
    except ChildFailed as failure:
        sys.exit(failure.detail)
