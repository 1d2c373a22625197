# SPDX-License-Identifier: Apache-2.0
"""The table of faults names tests that are there, each once."""

from pathlib import Path

from tests.faults.catalogue import FAULTS
from tests.faults.report import missing

ROOT = Path(__file__).resolve().parents[2]


def test_every_fault_is_broken_by_tests_that_exist() -> None:
    assert missing(ROOT) == []


def test_every_fault_is_named_once() -> None:
    names = [fault.id for fault in FAULTS]

    assert len(names) == len(set(names))
