# SPDX-License-Identifier: Apache-2.0
"""What an estate needs: from what was simulated and what one operation, and one row, was measured to cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from app.connectors.contract import Plane
from app.domain.retention import WORK
from app.settings import DatabaseSettings, WorkerSettings
from bench.fleet_calibration import CHANGED, COUNT, LOOK, PUSH, ROLLBACK, UNCHANGED, Cost, Costs
from bench.fleet_clock import HOUR, MEASURE, Found, Sums
from bench.fleet_estate import LATENCY
from bench.fleet_rows import Rows

COST_OF: Mapping[str, str] = {
    PUSH: PUSH,
    MEASURE: UNCHANGED,
    LOOK: LOOK,
    COUNT: COUNT,
    ROLLBACK: UNCHANGED,
}
BUSY = 0.6
"""How busy a worker, and a processor, may be on average, so that the busiest hour fits too."""
APIS = 2
CONNECTIONS_BESIDE = 2
"""Of each process, beside its pools: the doorbell's, and the relay's."""
PAGES_OF_A_CHANGE = 3
"""Blocks that a changed row touches: its own, and one of each index."""
PAGE = 8192
KEPT_DAYS = WORK.days


@dataclass(frozen=True, slots=True)
class Needs:
    """Rates are a second, sizes in bytes. ``…_cores`` are in use, not to be bought."""

    operations: float
    in_flight: float
    worker_cores: float
    workers: int
    database_cores: float
    transactions: float
    log: float
    blocks: float
    rows_read: float
    rows_changed: float
    rows_a_day: float
    growth: float
    kept: float
    working_set: float
    connections: int


def needs_of(found: Found, costs: Mapping[Plane, Costs], rows: Rows, noop: float) -> Needs:
    """``noop``: operations a second that one worker does when they do nothing."""
    seconds = found.hours * HOUR
    runs = sum(each.runs for each in found.sums.values())
    worker = total(found, costs, "worker") + runs / noop
    # who is told to wait for long gives his slot back, so that only what is answered takes one
    cores, in_flight = worker / seconds, sum(each.calls for each in found.sums.values()) * LATENCY / seconds
    workers = max(2, ceil(cores / BUSY), ceil(in_flight / (WorkerSettings().max_jobs * BUSY)))
    read = (
        sum(each.devices for (_, kind), each in found.sums.items() if kind in {MEASURE, ROLLBACK}) / seconds
    )
    changed = sum(each.changed for each in found.sums.values()) / seconds
    a_day = sum(each.devices for (_, kind), each in found.sums.items() if kind == PUSH) / (found.hours / 24)
    device = rows.each["device_results"]
    ended = (found.completed + found.rolled_back) / (found.hours / 24)
    beside = ended * rows.of_deployment(4, 1.15)
    return Needs(
        operations=runs / seconds,
        in_flight=in_flight,
        worker_cores=cores,
        workers=workers,
        database_cores=total(found, costs, "database") / seconds,
        transactions=transactions(found, costs) / seconds,
        log=total(found, costs, "log") / seconds,
        blocks=changed * PAGES_OF_A_CHANGE + read * rows.packed / PAGE,
        rows_read=read,
        rows_changed=changed,
        rows_a_day=a_day,
        growth=a_day * device + beside,
        kept=(found.rows + found.running_rows + KEPT_DAYS * a_day) * device + KEPT_DAYS * beside,
        working_set=found.running_rows * device,
        connections=connections(workers),
    )


def connections(workers: int) -> int:
    """At most, of all processes."""
    pools = DatabaseSettings()
    return (workers + APIS) * (2 * pools.pool_size + pools.max_overflow + CONNECTIONS_BESIDE)


def total(found: Found, costs: Mapping[Plane, Costs], name: str) -> float:
    """Of all work; what is by devices."""
    return sum(
        of_work(costs[plane].of, kind, sums, name)
        for (plane, kind), sums in found.sums.items()
        if COST_OF[kind] in costs[plane].of
    )


def of_work(of: Mapping[str, Cost], kind: str, sums: Sums, name: str) -> float:
    """Of one kind on one plane; what is new costs more than what is known."""
    line = getattr(of[COST_OF[kind]], name)
    found = float(line.fixed * sums.works + line.each * sums.devices)
    if kind == MEASURE:
        more = getattr(of[CHANGED], name).each - line.each
        found += max(0.0, more) * sums.changed
    return found


def transactions(found: Found, costs: Mapping[Plane, Costs]) -> float:
    """Those that write, by pages."""
    number = 0.0
    for (plane, kind), sums in found.sums.items():
        if COST_OF[kind] in costs[plane].of:
            line = costs[plane].of[COST_OF[kind]].transactions
            number += line.fixed * sums.works + line.each * sums.devices / costs[plane].page
    return number
