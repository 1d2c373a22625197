# SPDX-License-Identifier: Apache-2.0
"""``--faults``: run what breaks the product on purpose, and end with a table of what was seen."""

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.faults.catalogue import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption("--faults", action="store_true", help="all faults, the long ones too, with a table")


def pytest_configure(config: pytest.Config) -> None:
    """Collect the catalogue's files only, where no others are named; tell at the end."""
    if not config.getoption("--faults"):
        return
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = sorted({test.partition("::")[0] for fault in FAULTS for test in fault.tests})
    config.pluginmanager.register(Report(), "faults-report")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the option the long ones are left out, with it everything that breaks nothing."""
    wanted = is_of_catalogue if config.getoption("--faults") else is_short
    left = [item for item in items if not wanted(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if wanted(item)]


def is_short(item: pytest.Item) -> bool:
    """Whether it runs each time."""
    return item.get_closest_marker("long") is None


def is_of_catalogue(item: pytest.Item) -> bool:
    """Whether a fault of the catalogue is broken by it."""
    return any(item.nodeid.startswith(fault.tests) for fault in FAULTS)


class Report:
    """What became of the tests of each fault. Under xdist only the controller hears of all of them."""

    def __init__(self) -> None:
        self._ended: dict[str, tuple[str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst outcome of a test, and the seconds of its setup, call and teardown."""
        outcome, seconds = self._ended.get(report.nodeid, ("passed", 0.0))
        outcome = outcome if outcome != "passed" else report.outcome
        self._ended[report.nodeid] = (outcome, seconds + report.duration)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table."""
        if not self._ended:
            return
        terminalreporter.section("what was broken, and what was seen")
        for fault in FAULTS:
            terminalreporter.line(self._row(fault))

    def _row(self, fault: Fault) -> str:
        found = [result for nodeid, result in self._ended.items() if nodeid.startswith(fault.tests)]
        verdict = judged([outcome for outcome, _ in found])
        told = f"{len(found):3d} tests  {sum(seconds for _, seconds in found):6.1f} s"
        form = "each run" if is_in_each_run(ROOT, fault) else "--faults"
        return f"{fault.id:8} {verdict:9} {told}  {form}  {fault.broken} → {fault.seen}"


def judged(outcomes: Sequence[str]) -> str:
    """One word for the tests of a fault: it was seen only where all of them ran and passed."""
    if failed := outcomes.count("failed"):
        return f"{failed} FAILED"
    if not outcomes:
        return "not run"
    return "seen" if set(outcomes) == {"passed"} else "skipped"


def missing(root: Path) -> list[str]:
    """The catalogue's tests that no file has."""
    return [test for fault in FAULTS for test in fault.tests if not _functions(root, test)]


def is_in_each_run(root: Path, fault: Fault) -> bool:
    """Whether any of its tests runs without ``--faults``: those are marked long that do not."""
    found = [function for test in fault.tests for function in _functions(root, test)]
    return any("pytest.mark.long" not in map(ast.unparse, function.decorator_list) for function in found)


@cache
def _functions(root: Path, test: str) -> Sequence[Function]:
    """The test functions, of a class or of none, whose node ids begin as ``test`` does."""
    path, _, name = test.partition("::")
    if not (root / path).is_file():
        return ()
    body = ast.parse((root / path).read_bytes()).body
    owners = [("", body), *((f"{node.name}::", node.body) for node in body if isinstance(node, ast.ClassDef))]
    named = [(owner, each) for owner, held in owners for each in held if isinstance(each, Function)]
    return [each for owner, each in named if f"{owner}{each.name}".startswith(name or "test_")]
