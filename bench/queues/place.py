# SPDX-License-Identifier: Apache-2.0
"""What the programs of this folder are told, and how they tell what they have done."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Servers to work on, each queue in a Redis database of its own.

    ``jobs`` at once in a process; ``target``: where each job sends one POST. If it is empty, jobs do nothing.
    """

    database_url: str
    redis_url: str
    jobs: int
    target: str = ""


class Told:
    """Counts jobs; when so many are done a line says so, each number counting from the one before."""

    def __init__(self, marks: list[int]) -> None:
        self._marks = marks
        self._count = 0

    def one(self) -> None:
        """One more is done."""
        self._count += 1
        if self._marks and self._count == self._marks[0]:
            del self._marks[0]
            self._count = 0
            print("done", flush=True)  # noqa: T201
