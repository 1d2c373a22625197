# SPDX-License-Identifier: Apache-2.0
"""``eucora bench``: measures the product beside other libraries and beside its limits, in one run."""

import asyncio
import importlib
import json
from collections.abc import Callable
from typing import Annotated

import typer

from bench import peers, results
from bench.report import Report, show
from bench.rounds import Size

BENCHMARKS = {
    "accept": "Submissions a second, beside an empty POST and the bare statement; p99 while planes hang.",
    "latency": "From the submission to the first request at the plane, on an idle system.",
    "jobs": "Durable operations a second, beside other task queues; whole jobs; two workers.",
    "guard": "Microseconds that deadline, breaker, retries and the rest add to a call.",
    "calls": "Requests a second of the product's HTTP client, beside plain httpx.",
    "status": "Reading a lane's status and deep pages with a million devices.",
    "growth": "Device results into the database, beside COPY.",
    "memory": "What idle processes hold, and what uploads and large fleets add.",
    "soak": "Half an hour of steady work with a plane that fails and recovers: what grows.",
    "fleet": "A simulated estate of a million devices: what an organisation of that size needs.",
}
LONG = ("soak", "fleet")
"""Not part of ``all`` unless it is small."""

cli = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Small = Annotated[bool, typer.Option("--small", help="Only see that it works: little work, no peers.")]
Peers = Annotated[
    bool,
    typer.Option("--peers/--no-peers", help="Run other libraries beside the product; installs them once."),
]
Rounds = Annotated[int, typer.Option(min=5, max=99, help="Alternating rounds.")]
Save = Annotated[bool, typer.Option("--save", help="Keep document and picture in docs/performance/.")]


def register(command_name: str, question: str, select: Callable[[bool], list[str]]) -> None:
    """Give one or several benchmarks a command; ``select`` names them, given whether it is to be small."""

    @cli.command(command_name, help=question)
    def command(
        *,
        as_json: Json = False,
        small: Small = False,
        with_peers: Peers = True,
        rounds: Rounds = 5,
        save: Save = False,
    ) -> None:
        size = size_of(small=small, with_peers=with_peers, rounds=rounds)
        run(select(small), size, as_json=as_json, save=save)


def every(small: bool) -> list[str]:  # noqa: FBT001 - as ``select``
    """All of them."""
    return [name for name in BENCHMARKS if small or name not in LONG]


def only(name: str) -> Callable[[bool], list[str]]:
    """One, of whatever size."""
    return lambda _: [name]


for each, question in BENCHMARKS.items():
    register(each, question, only(each))
register("all", "Every benchmark, one after the other; without the long ones unless small.", every)


@cli.command("results", help="Make docs/performance/results.md anew from what --save has kept.")
def write_results() -> None:
    """Of all benchmarks together."""
    results.write(list(BENCHMARKS))


def size_of(*, small: bool, with_peers: bool, rounds: int) -> Size:
    """As asked for; a small run has one round and no peers."""
    return Size(small=True, peers=False, rounds=1) if small else Size(peers=with_peers, rounds=rounds)


def run(names: list[str], size: Size, *, as_json: bool, save: bool) -> None:
    """Measure, show each as it is found, and keep it if asked."""
    if size.peers or save:
        peers.install()
    found = []
    for name in names:
        module = importlib.import_module(f"bench.{name}")
        report: Report = asyncio.run(module.measure(size))
        found.append(report.to_json())
        if not as_json:
            show(report)
        if save:
            keep(report)
    if as_json:
        typer.echo(json.dumps(found if len(found) > 1 else found[0], indent=2))


def keep(report: Report) -> None:
    """Document and picture; the picture is drawn by one of the peers' packages."""
    from bench import picture

    path = report.keep()
    picture.draw(json.loads(path.read_text()), path.with_suffix(".svg"))
    results.write(list(BENCHMARKS))


if __name__ == "__main__":
    cli(prog_name="eucora bench")
