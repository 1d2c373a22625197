# SPDX-License-Identifier: Apache-2.0
"""The worker of one of the queues, until it is killed."""

import importlib
import json
import logging
import sys

from bench.queues.place import Place, Told

if __name__ == "__main__":
    name, place, marks = sys.argv[1], Place(**json.loads(sys.argv[2])), json.loads(sys.argv[3])
    logging.basicConfig(level=logging.ERROR)
    importlib.import_module(f"bench.queues.{name}").work(place, Told(marks))
