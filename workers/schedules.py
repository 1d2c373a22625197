# SPDX-License-Identifier: Apache-2.0
"""What is done again and again, and how often: the schedules of this installation."""

from collections.abc import Iterator
from datetime import timedelta

from app.connectors.contract import Capability, Plane
from app.domain.operations import OperationKind, Subject
from app.domain.schedules import CatchUp, Rule
from app.runtime import Runtime


def rules(runtime: Runtime) -> list[Rule]:
    """Every schedule, by the settings. A plane that cannot be observed has none."""
    return [*_housekeeping(runtime), *_reconciliation(runtime)]


def _housekeeping(runtime: Runtime) -> Iterator[Rule]:
    settings = runtime.settings.housekeeping
    # A moment that was not written down is lost, so it is written late; what was not deleted goes next time.
    yield _of_all(OperationKind.CHECKPOINT_HISTORY, settings.checkpoint, CatchUp.ONCE)
    yield _of_all(OperationKind.APPLY_RETENTION, settings.retention, CatchUp.SKIP)


def _of_all(kind: OperationKind, seconds: float, catch_up: CatchUp) -> Rule:
    """Work that concerns the whole installation."""
    return Rule(kind.value, kind, Subject("schedule", kind.value), timedelta(seconds=seconds), catch_up)


def _reconciliation(runtime: Runtime) -> Iterator[Rule]:
    for plane, connector in runtime.connectors.items():
        if connector.manifest.can(Capability.OBSERVE):
            yield _reconcile(runtime, plane, critical=False)
            yield _reconcile(runtime, plane, critical=True)


def _reconcile(runtime: Runtime, plane: Plane, *, critical: bool) -> Rule:
    settings, kind = runtime.settings.reconciliation, OperationKind.RECONCILE
    name = f"{kind.value}/{plane.value}" + ("/critical" if critical else "")
    every = settings.critical_every if critical else settings.every
    return Rule(
        name,
        kind,
        Subject("plane", plane.value),
        timedelta(seconds=every),
        CatchUp.ONCE,
        {"critical": critical},
    )
