# SPDX-License-Identifier: Apache-2.0
"""How everything here is measured: the compared take turns, round after round, in one run."""

import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Once = Callable[[], Awaitable[float]]
"""One round of one of the compared; the figure that was measured. Raises if the work was not all done."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done. ``small`` only shows that a benchmark works; its figures say nothing.

    ``peers``: other libraries are run beside the product; they have to be installed. ``rounds`` is odd.
    """

    small: bool = False
    peers: bool = True
    rounds: int = 5

    def of(self, full: int, small: int) -> int:
        """How many of something."""
        return small if self.small else full


async def alternate(compared: Mapping[str, Once], rounds: int) -> dict[str, list[float]]:
    """The figures of each by name, one per round. In every second round they come in the opposite order."""
    seen: dict[str, list[float]] = {name: [] for name in compared}
    for number in range(rounds):
        for name in list(compared)[:: -1 if number % 2 else 1]:
            seen[name].append(await compared[name]())
    return seen


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds: what was measured in the same minute is compared, not two medians."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
