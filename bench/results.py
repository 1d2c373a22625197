# SPDX-License-Identifier: Apache-2.0
"""The page of all results that were kept, and the table of what is reached: nobody copies figures by hand."""

import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from bench.report import FOLDER

PAGE, GUIDE = FOLDER / "results.md", FOLDER / "README.md"
BEGIN, END = "<!-- made by ./eucora bench results -->\n", "<!-- as far as here -->\n"
HEAD = """# Results

Made by `./eucora bench results` from the documents that `--save` keeps; do not edit. What the figures mean,
what bounds them and what did not help is in [README.md](README.md). Only the ratios of one run mean anything.
"""


def write(names: Sequence[str]) -> None:
    """Write both for those of the benchmarks, in this order, that have been kept."""
    documents = [json.loads(path.read_text()) for name in names if (path := FOLDER / f"{name}.json").exists()]
    PAGE.write_text("\n".join([HEAD, *("\n".join(section(each)) for each in documents)]))
    before, _, rest = GUIDE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    GUIDE.write_text("".join([before, BEGIN, "\n".join(goals(documents)), "\n", END, after]))


def goals(documents: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One table of everything that is to be reached."""
    yield "| what | found | floor | target | reached | command |"
    yield "| --- | ---: | ---: | ---: | --- | --- |"
    for document in documents:
        for goal in document["goals"]:
            sign = "≤" if goal["at_most"] else "≥"
            found, *limits = (f"{goal[each]:.3g} {goal['unit']}" for each in ("found", "floor", "target"))
            floor, target = (f"{sign} {each}" for each in limits)
            command = f"`./eucora bench {document['name']}`"
            yield f"| {goal['what']} | {found} | {floor} | {target} | {goal['verdict']} | {command} |"


def section(document: dict[str, Any]) -> Iterator[str]:
    """Everything one benchmark found."""
    name, machine = document["name"], document["machine"]
    yield f"## {name}"
    yield (
        f"Python {machine['python']}, {machine['processors']} processors ({machine['architecture']}), "
        f"load {machine['load']} at the end."
    )
    yield ""
    if (FOLDER / f"{name}.svg").exists():
        yield f"![{name}]({name}.svg)"
        yield ""
    for comparison in document["comparisons"]:
        yield from comparison_table(comparison)
    for listing in document["listings"]:
        yield from listing_table(listing)
    yield from (f"- {note}" for note in document["notes"])
    yield ""


def comparison_table(comparison: dict[str, Any]) -> Iterator[str]:
    """Median, lowest, highest and ratio of each."""
    yield f"| {comparison['title']} ({comparison['unit']}) | median | lowest | highest | ratio |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, figures in comparison["figures"].items():
        shown = [statistics.median(figures), min(figures), max(figures)]
        figures_shown = " | ".join(f"{each:,.4g}" for each in shown)
        yield f"| {name} | {figures_shown} | {comparison['ratios'][name]:.3g} |"
    yield ""


def listing_table(listing: dict[str, Any]) -> Iterator[str]:
    """As it was shown."""
    yield f"{listing['title']}:"
    yield ""
    yield f"| {' | '.join(listing['columns'])} |"
    yield f"| {' | '.join('---' for _ in listing['columns'])} |"
    yield from (f"| {' | '.join(row)} |" for row in listing["rows"])
    yield ""
