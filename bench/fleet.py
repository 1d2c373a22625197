# SPDX-License-Identifier: Apache-2.0
"""Estates of 10 k, 100 k and a million devices: what they ask of planes, workers and PostgreSQL.

What an operation costs is measured first, with the product's own jobs against the sandbox planes; then the
estate lives for weeks in virtual time. What could not be measured is in ``bench/fleet_estate.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Plane
from app.domain.gates import Counts, Gate, Verdict, judge
from app.domain.policies import STANDARD
from app.models import Connectivity, Ring
from app.supervisor import Installation
from bench import fleet_rows
from bench.fleet_calibration import (
    COUNT,
    LOOK,
    PUSH,
    ROLLBACK,
    WORK,
    Bench,
    Costs,
    calibrate,
    calibrate_a_little,
    opened,
)
from bench.fleet_clock import MEASURE, Found, capacity
from bench.fleet_estate import LARGE, LATENCY, MEDIUM, SMALL, Estate, calmed
from bench.fleet_needs import Needs, needs_of
from bench.fleet_rows import Rows
from bench.fleet_simulation import simulate
from bench.installation import installed
from bench.jobs import Contest, of_the_product, place_of
from bench.report import Comparison, Listing, Report
from bench.rounds import Size

SIZES = (1000, 3000, 2000)
"""Devices: two for the line, and one that must lie on it."""
LITTLE = (20, 1020)
OPERATIONS = {
    "deploy_to_connector": PUSH,
    "measure_ring": MEASURE,
    "reconcile": LOOK,
    "count_target": COUNT,
    "execute_rollback": ROLLBACK,
}
JOBS = 100
"""Operations that one worker may do at once while it shows how many it does in a second."""
WANTED, CALM, LIMIT = "this product, as it is set", "this product, set calmer", "the plane's limit"


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured before anything is simulated."""

    costs: Mapping[Plane, Costs]
    rows: Rows
    noop: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One estate: what it would ask without limits, what becomes of it within them, and what that needs."""

    wanted: Found
    held: Found
    needs: Needs

    @property
    def estate(self) -> Estate:
        """Whose."""
        return self.held.estate


async def measure(size: Size) -> Report:
    """Measure, simulate, tell."""
    report, measured = Report("fleet"), await measured_here(size)
    estates = [SMALL] if size.small else [SMALL, MEDIUM, LARGE, calmed(LARGE)]
    days, warm = (2.0, 2 * 86400.0) if size.small else (28.0, 16 * 86400.0)
    answers = [answer(estate, measured, days, warm) for estate in estates]
    report.comparisons += [compared(plane, answers) for plane in measured.costs]
    report.listings += [of_costs(measured), of_extras(measured), of_rows(measured.rows), of_needs(answers)]
    report.listings += [of_operations(answers), of_calls(answers), of_work(answers)]
    report.notes += [*notes(measured, days, small=size.small), of_the_gates()]
    return report


async def measured_here(size: Size) -> Measured:
    """What operations and rows cost on this machine."""
    async with installed() as installation:
        noop = 0.0 if size.small else await of_the_product(contest(installation), processes=1)
        async with opened(installation) as bench:
            costs = await (of_one(bench) if size.small else of_all(bench))
            rows = await fleet_rows.weigh(installation, bench.database, size.of(2000, 100))
    return Measured(costs, rows, noop or 1 / costs[Plane.SCCM].of[COUNT].worker.fixed)


def contest(installation: Installation) -> Contest:
    """Operations that do nothing."""
    return Contest(place_of(installation.settings, JOBS), count=4000, warm=300)


async def of_all(bench: Bench) -> dict[Plane, Costs]:
    """Every plane."""
    return {plane: await calibrate(bench, plane, SIZES) for plane in Plane}


async def of_one(bench: Bench) -> dict[Plane, Costs]:
    """One plane that stands for all: this only shows that it works."""
    return dict.fromkeys(Plane, await calibrate_a_little(bench, Plane.SCCM, LITTLE))


def answer(estate: Estate, measured: Measured, days: float, warm: float) -> Answer:
    """Both simulations of an estate."""
    live = partial(simulate, estate, measured.costs, days=days, warm=warm)
    wanted, held = live(limited=False), live(limited=True)
    return Answer(wanted, held, needs_of(held, measured.costs, measured.rows, measured.noop))


def compared(plane: Plane, answers: Sequence[Answer]) -> Comparison:
    """What the largest estate would ask of a plane, as things are set and calmer, beside its limit."""
    large = [each for each in answers if each.estate.devices == answers[-1].estate.devices]
    names = (WANTED, CALM)
    figures = {LIMIT: [capacity(plane) * 3600]} | {
        name: [each.wanted.calls(plane)] for name, each in zip(names, large, strict=False)
    }
    title = f"requests to {MANIFESTS[plane].title}, {large[0].estate.name}"
    return Comparison(title, "an hour", figures, LIMIT)


def of_costs(measured: Measured) -> Listing:
    """One row for each kind of work on each plane."""
    rows: list[tuple[str, ...]] = [
        (
            f"{plane.value}: {kind}",
            f"{cost.requests.fixed:.3g} + {cost.requests.each:.3g} p",
            f"{cost.transactions.fixed:.3g} + {cost.transactions.each:.2g} p",
            f"{cost.log.fixed / 1000:.3g} + {cost.log.each:.3g} n/1000",
            f"{cost.worker.fixed * 1000:.3g} + {cost.worker.each * 1000:.2g} n",
            f"{cost.database.fixed * 1000:.2g} + {cost.database.each * 1000:.2g} n",
        )
        for plane, costs in measured.costs.items()
        for kind in WORK
        if (cost := costs.of.get(kind))
    ]
    columns = ("one operation; n devices on p pages", "requests", "transactions", "WAL, kB")
    return Listing("what work costs", (*columns, "worker's CPU, ms", "PostgreSQL's CPU, ms"), rows)


def of_extras(measured: Measured) -> Listing:
    """What else was counted."""
    rows: list[tuple[str, ...]] = [
        (
            plane.value,
            f"{costs.page:,}",
            f"{costs.per_failed:.2g}",
            f"{costs.per_failing_page:.2g}",
            f"{costs.others:.2g}",
        )
        for plane, costs in measured.costs.items()
    ]
    columns = ("requests more", "devices on a page", "for a failed device", "for a page with failures")
    return Listing("beside these", (*columns, "of a push, for a page of others' devices"), rows)


def of_rows(rows: Rows) -> Listing:
    """Bytes by table."""
    found: list[tuple[str, ...]] = [
        (table, f"{size:,.0f}", f"{rows.left.get(table, 1):.1f}") for table, size in rows.each.items()
    ]
    found.append(("device_results, packed", f"{rows.packed:,.0f}", ""))
    return Listing("rows", ("table", "bytes, with indexes", "of a deployment with one lane"), found)


def of_needs(answers: Sequence[Answer]) -> Listing:
    """One column for each estate."""

    def row(what: str, shape: str, name: str, unit: float = 1) -> tuple[str, ...]:
        return (what, *(format(getattr(each.needs, name) / unit, shape) for each in answers))

    rows = [
        ("deployments that end in a day", *(ended(each.held) for each in answers)),
        row("operations an hour", ",.0f", "operations", 1 / 3600),
        row("operations at once", ",.1f", "in_flight"),
        row("workers' processors in use", ".2f", "worker_cores"),
        row("worker processes", ",.0f", "workers"),
        row("PostgreSQL's processors in use", ".2f", "database_cores"),
        row("connections at most", ",.0f", "connections"),
        row("writing transactions a second", ",.1f", "transactions"),
        row("WAL, MB a second", ",.2f", "log", 1e6),
        row("blocks written a second", ",.0f", "blocks"),
        row("device rows read a second", ",.0f", "rows_read"),
        row("device rows changed a second", ",.0f", "rows_changed"),
        row("device rows added a day", ",.0f", "rows_a_day"),
        row("growth, GB a day", ",.2f", "growth", 1e9),
        row("database after 90 days, GB", ",.1f", "kept", 1e9),
        row("rows of lanes being measured, GB", ",.2f", "working_set", 1e9),
    ]
    return Listing("what it needs", ("", *(each.estate.name for each in answers)), rows)


def ended(found: Found) -> str:
    """Completed, and taken back."""
    days = found.hours / 24
    return f"{found.completed / days:.1f} + {found.rolled_back / days:.1f} back"


def of_operations(answers: Sequence[Answer]) -> Listing:
    """Runs of operations an hour by kind, within the limits."""
    rows: list[tuple[str, ...]] = [
        (name, *(f"{each.held.runs(kind):,.1f}" for each in answers)) for name, kind in OPERATIONS.items()
    ]
    return Listing("operations an hour", ("", *(each.estate.name for each in answers)), rows)


def of_calls(answers: Sequence[Answer]) -> Listing:
    """Requests an hour by plane and kind: wanted and, within the limit, done."""
    rows: list[tuple[str, ...]] = []
    for each in answers:
        for plane in each.wanted.hourly:
            limit = capacity(plane) * 3600
            rows.append(
                (
                    f"{each.estate.name}: {plane.value}",
                    f"{each.wanted.calls(plane):,.0f}",
                    f"{max(each.wanted.hourly[plane]):,.0f}",
                    f"{each.wanted.calls(plane, MEASURE):,.0f}",
                    f"{each.wanted.calls(plane, LOOK):,.0f}",
                    f"{limit:,.0f}",
                    f"{each.wanted.calls(plane) / limit:.2f}",
                    f"{each.held.calls(plane):,.0f}",
                )
            )
    columns = ("requests an hour", "wanted", "busiest hour", "measuring", "reconciling", "limit", "x", "held")
    return Listing("planes", columns, rows)


def of_work(answers: Sequence[Answer]) -> Listing:
    """What becomes of intervals and ticks within the limits."""
    rows: list[tuple[str, ...]] = []
    for each in answers:
        for plane, lanes in each.held.in_force.items():
            looks = each.held.sums[plane, LOOK].works / each.held.hours
            whole = f"{lanes / looks:,.1f}" if looks else "-"
            interval = each.held.interval(plane)
            rows.append((f"{each.estate.name}: {plane.value}", f"{lanes:,}", whole, f"{interval:,.0f}"))
    columns = (
        "within the limits",
        "lanes in force",
        "hours for one look at each",
        "seconds between measurements",
    )
    return Listing("what becomes of them", columns, rows)


def notes(measured: Measured, days: float, *, small: bool) -> list[str]:
    """How it was found."""
    checked = "" if small else ", and a third lay on it"
    return [
        f"{days:.0f} days in virtual time after the warm-up, from one seed; a plane answers in {LATENCY} s.",
        f"One worker does {measured.noop:,.0f} operations a second that do nothing.",
        f"The sandbox planes counted the requests: two fleets made each line{checked}.",
    ]


def of_the_gates() -> str:
    """How few devices may be away, asked of the product's own gate."""
    gate, waits = STANDARD.gates[Ring.DEPARTMENT], STANDARD.connectivity
    away = next(number for number in range(1000) if goes_back(Counts(1000, 1000 - number, number), gate))
    hours = waits[Connectivity.ONLINE].total_seconds() / 3600
    what = (
        f"A ring of 1,000 goes back from DEPARTMENT or GLOBAL as soon as {away} are silent at their deadline"
    )
    return f"{what}: {hours:.0f} h after the push for those that were heard of on the day before it."


def goes_back(counts: Counts, gate: Gate) -> bool:
    """Whether a lane with these outcomes is taken back."""
    return judge(counts, gate, soaked=timedelta(0)).verdict is Verdict.ROLL_BACK
