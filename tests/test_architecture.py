# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that a machine can hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from app.connectors.catalogue import VENDORS
from app.domain import effects, operations, pictures
from app.domain.operations import KINDS, OperationKind
from app.domain.rollout import DEPLOYMENT_MOVES, FINAL, LANE_MOVES
from app.models import DeploymentStatus, EffectState, LaneStatus, OperationStatus
from workers.main import JOBS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "workers", "sandbox", "migrations", "tests", "bench")
MOST_LINES = 400
BANNED = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}
ONLY_IMPORTER = {
    "aiobreaker": "app/resilience/breaker.py",
    "tenacity": "app/resilience/retry.py",
    "httpx_aiohttp": "app/resilience/transport.py",
    "spnego": "app/resilience/windows.py",
}


def sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_imports_go_one_way() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


def used_of(path: Path, *modules: str) -> set[str]:
    """What a file takes of modules, as ``module.name``, and modules it hands on whole."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    taken = {
        id(node.value): f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in modules]
    return {taken.get(id(node), node.id) for node in named}


def domain_of(path: Path) -> set[str]:
    """The modules of the domain that a file imports, by whatever way."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "app.domain":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("app.domain."):
            found.add(str(node.module).split(".")[2])
    return found


def test_what_a_task_may_bring_about_are_these_three_orders() -> None:
    """Whoever adds one here has let a language model do more: ``proposals`` says what that takes."""
    actions = ROOT / "app" / "domain" / "ai_actions.py"

    assert used_of(actions, "commands", "retries", "rollback") == {
        *("commands.pause", "retries.retry", "rollback.begin"),
    }
    assert domain_of(actions) == {
        *("accounts", "ai_tasks", "budgets", "commands", "operations", "proposals", "retries", "rollback"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("app/domain/ai_tasks.py", "app/domain/ai_decisions.py", "app/domain/proposals.py"),
        *("workers/ai_tasks.py", "workers/assistant.py", "workers/conversations.py"),
        *("app/api/ai_tasks.py", "app/api/conversations.py"),
        *("app/domain/conversations.py", "app/domain/inquiries.py", "app/domain/ai_calls.py"),
    ],
)
def test_nothing_of_the_assistant_has_an_order_at_hand(name: str) -> None:
    orders = {
        *("approvals", "board", "commands", "drift", "effects", "freezes", "intents", "lanes", "promotion"),
        *("pushes", "repairs", "retries", "risk", "rollback", "withdrawal"),
    }

    assert not domain_of(ROOT / name) & orders
    assert used_of(ROOT / name, "deployments") <= {
        *("deployments.exists", "deployments.get", "deployments.lock", "deployments.RECENT"),
    }


@pytest.mark.parametrize(("library", "importer"), ONLY_IMPORTER.items())
def test_each_library_has_one_importer(library: str, importer: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in sources("app", "workers")
        if any(name.split(".")[0] == library for name in imports(path))
    }

    assert users == {importer}


def test_no_module_is_too_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources("app", "workers", "sandbox")
    }

    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_every_source_file_names_its_licence_first() -> None:
    without = [
        path.relative_to(ROOT).as_posix()
        for path in sources(*PACKAGES)
        if not path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0\n")
    ]

    assert without == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [path for path in sources(*PACKAGES) if path.stem in BANNED] == []


def test_every_kind_of_operation_has_a_job_and_limits() -> None:
    assert set(JOBS) == set(OperationKind) == set(KINDS)
    assert {kind.value for kind in OperationKind} == {job.__name__ for job in JOBS.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_work_stops_by_itself_well_before_it_is_stopped(kind: OperationKind) -> None:
    hard, soft = (each.total_seconds() for each in (KINDS[kind].hard_limit, KINDS[kind].soft_limit))

    assert hard - soft == {300.0: 30.0, 120.0: 20.0, 60.0: 10.0}[hard]


def test_the_transition_tables_are_complete_and_only_final_states_end() -> None:
    assert set(DEPLOYMENT_MOVES) == set(DeploymentStatus)
    assert set(LANE_MOVES) == set(LaneStatus)
    assert {state for state, moves in DEPLOYMENT_MOVES.items() if not moves} <= FINAL
    assert {state for state, moves in LANE_MOVES.items() if not moves} == {LaneStatus.ROLLED_BACK}


def test_every_state_can_be_reached() -> None:
    deployment = {DeploymentStatus.PENDING}.union(*DEPLOYMENT_MOVES.values())
    lane = {LaneStatus.PENDING}.union(*LANE_MOVES.values())

    assert (deployment, lane) == (set(DeploymentStatus), set(LaneStatus))


def test_the_committed_drawings_are_those_of_the_tables() -> None:
    committed = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")

    assert committed == pictures.document(), "run: eucora states > docs/states.md"


@pytest.mark.parametrize(
    ("moves", "kind"),
    [(operations.MOVES, OperationStatus), (effects.MOVES, EffectState)],
    ids=["op", "effect"],
)
def test_other_tables_are_complete_too(moves: Mapping[Any, frozenset[Any]], kind: type[StrEnum]) -> None:
    assert set(moves) == set(kind)
    assert {next(iter(kind))}.union(*moves.values()) == set(kind)


def test_every_connector_cites_its_sources_and_names_what_it_can_do() -> None:
    for vendor in VENDORS:
        assert vendor.manifest.sources
        assert vendor.manifest.package_kinds
        assert vendor.manifest.max_concurrency > 0


def test_nothing_is_left_unfinished_in_the_product() -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    marked = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources("app", "workers", "sandbox")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]

    assert marked == []


def test_lock_files_name_no_index_and_pin_every_hash() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "bench/requirements.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text
        pinned = re.findall(r"^[A-Za-z0-9_.\-\[\]]+==[^\s\\]+", text, re.MULTILINE)
        assert len(pinned) >= (3 if name.startswith("bench") else 20)
        assert text.count("--hash=sha256:") >= len(pinned)
