# SPDX-License-Identifier: Apache-2.0
"""``--faults``: run what breaks the product on purpose, and end with a table of what was seen."""

from pathlib import Path

import pytest

from tests.faults.catalogue import FAULTS, Fault


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
    return any(item.nodeid.startswith(test) for fault in FAULTS for test in fault.tests)


class Report:
    """What became of the tests of each fault. Under xdist only the controller hears of all of them."""

    def __init__(self) -> None:
        self._ended: dict[str, tuple[str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome: that of the call, or of a setup that failed."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self._ended[report.nodeid] = (report.outcome, report.duration)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table."""
        if not self._ended:
            return
        terminalreporter.section("what was broken, and what was seen")
        for fault in FAULTS:
            terminalreporter.line(self._row(fault))

    def _row(self, fault: Fault) -> str:
        ended = [
            result
            for nodeid, result in self._ended.items()
            if any(nodeid.startswith(test) for test in fault.tests)
        ]
        failed = sum(outcome == "failed" for outcome, _ in ended)
        verdict = "not run" if not ended else f"{failed} FAILED" if failed else "seen"
        seconds = sum(duration for _, duration in ended)
        told = f"{len(ended):3d} tests  {seconds:6.1f} s"
        return f"{fault.id:8} {verdict:9} {told}  {fault.broken} → {fault.seen}"


def missing(root: Path) -> list[str]:
    """The catalogue's tests that no file has."""
    return [test for fault in FAULTS for test in fault.tests if not _exists(root, test)]


def _exists(root: Path, test: str) -> bool:
    path, _, name = test.partition("::")
    if not (root / path).is_file():
        return False
    source = (root / path).read_text(encoding="utf-8")
    return all(part in source for part in name.split("::") if part)
