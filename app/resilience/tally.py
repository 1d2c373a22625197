# SPDX-License-Identifier: Apache-2.0
"""Attempts per service, their outcomes and their times, counted on the path of every call.

In plain numbers, which only the event loop's thread changes: Prometheus' own are locked one by one, and would
take a tenth of all that the guard adds to a call.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

BOUNDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 120)
GOOD = "ok"


class Tally:
    """One service's attempts: good ones and failed ones by their code, and how long all of them took."""

    __slots__ = ("_seconds", "_times", "failed", "good")

    def __init__(self) -> None:
        self.good = 0
        self.failed: Counter[str] = Counter()
        self._times = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def took(self, seconds: float) -> None:
        """An attempt ended, whatever came of it."""
        self._times[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def outcomes(self) -> dict[str, int]:
        """Attempts by ``ok`` or their code."""
        return {GOOD: self.good, **self.failed}

    def histogram(self) -> tuple[list[tuple[str, float]], float]:
        """How many took at most so many seconds, and the seconds of all."""
        bounds = (*(str(float(each)) for each in BOUNDS), "+Inf")
        return list(zip(bounds, accumulate(self._times), strict=True)), self._seconds


class Tallies(Collector):
    """Those of all services that this process has called, as Prometheus reads them."""

    def __init__(self) -> None:
        self._all: dict[str, Tally] = {}

    def of(self, service: str) -> Tally:
        """One service's."""
        return self._all.setdefault(service, Tally())

    def collect(self) -> Iterator[Metric]:
        """Both metrics."""
        outcomes = CounterMetricFamily(
            "eucora_call_attempts",
            "Attempts by service and outcome: ok, or the code of the error class.",
            labels=("service", "outcome"),
        )
        times = HistogramMetricFamily(
            "eucora_call_attempt_seconds",
            "How long attempts took, whatever came of them.",
            labels=("service",),
        )
        for service, tally in list(self._all.items()):
            for outcome, count in tally.outcomes().items():
                outcomes.add_metric((service, outcome), count)
            times.add_metric((service,), *tally.histogram())
        yield from (outcomes, times)
