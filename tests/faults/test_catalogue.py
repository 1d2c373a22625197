# SPDX-License-Identifier: Apache-2.0
"""The table of faults names tests that are there, each once, and calls nothing seen that was not."""

import pytest

from tests.faults.catalogue import FAULTS, Fault
from tests.faults.report import ROOT, is_in_each_run, judged, missing


def test_every_fault_is_broken_by_tests_that_exist() -> None:
    assert missing(ROOT) == []


def test_every_fault_is_named_once() -> None:
    names = [fault.id for fault in FAULTS]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "each_run"), [("a_storm", False), ("a_small_storm", True), ("", True)])
def test_what_is_marked_long_is_not_in_each_run(name: str, *, each_run: bool) -> None:
    fault = Fault("storm", "all of it", "nothing", (f"tests/faults/test_storm.py::test_{name}",))

    assert is_in_each_run(ROOT, fault) is each_run


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        ([], "not run"),
        (["passed", "passed"], "seen"),
        (["passed", "skipped"], "skipped"),
        (["passed", "failed", "skipped"], "1 FAILED"),
    ],
)
def test_a_fault_is_seen_when_all_its_tests_have_passed(outcomes: list[str], word: str) -> None:
    assert judged(outcomes) == word
