# SPDX-License-Identifier: Apache-2.0
"""A worker of the product on a machine whose clock is so many seconds off."""

import sys
from datetime import datetime, timedelta

from app.clock import system_clock
from app.settings import Settings
from workers.main import run_worker

OFFSET = timedelta(seconds=float(sys.argv[1])) if len(sys.argv) > 1 else timedelta(0)


def odd() -> datetime:
    return system_clock() + OFFSET


if __name__ == "__main__":
    run_worker(Settings(), wall=odd)
