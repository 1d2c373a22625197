# SPDX-License-Identifier: Apache-2.0
"""A process that calls a service as it is told, one JSON command a line, and answers with what it saw.

Times are those of ``time.time()``: all processes of a test run on one machine.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiobreaker

from app import telemetry
from app.redis import open_hasty_redis, open_redis
from app.resilience import BreakerPolicy, Breakers, ResilientClient, RetryProfile
from app.resilience.breaker import ServiceBreaker
from app.resilience.errors import CallError
from app.resilience.fleet import PATIENCE
from app.resilience.http import create_resilient_client

SERVICE = "intune"
ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


class Moves(aiobreaker.CircuitBreakerListener):  # type: ignore[misc]  # the library is untyped
    """When the breaker moved, and to which of the library's states."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str]] = []

    def state_change(self, _: object, __: object, state: Any) -> None:
        self.seen.append((time.time(), state.state.name.lower()))


class Caller:
    """One client of one service, and what becomes of its calls."""

    def __init__(self, client: ResilientClient, breaker: ServiceBreaker) -> None:
        self._client = client
        self._breaker = breaker
        self._moves = Moves()
        breaker.add_listener(self._moves)

    async def calls(self, *, count: int, at_once: int = 1, pause: float = 0.0) -> Json:
        """So many calls, by so many callers."""
        ends: list[tuple[float, float, str]] = []
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                began = time.time()
                outcome = await self._once()
                ends.append((began, time.time(), outcome))
                await asyncio.sleep(pause)

        await asyncio.gather(*(caller() for _ in range(at_once)))
        return {
            "outcomes": Counter(end[2] for end in ends),
            "slowest": max(end[1] - end[0] for end in ends),
            "last": max(end[1] for end in ends),
            "waits": [end[1] - end[0] for end in ends],
        }

    async def _once(self) -> str:
        try:
            await self._client.get("/")
        except CallError as error:
            return error.code
        return "ok"

    async def until_good(self, *, at_once: int, pause: float = 0.005, within: float = 30.0) -> Json:
        """Many callers that go on until one of their calls is good."""
        good, seen = asyncio.Event(), Counter[str]()

        async def caller() -> None:
            while not good.is_set():
                outcome = await self._once()
                seen[outcome] += 1
                if outcome == "ok":
                    good.set()
                await asyncio.sleep(pause)

        async with asyncio.timeout(within):
            await asyncio.gather(*(caller() for _ in range(at_once)))
        return {"outcomes": seen, "last": time.time()}

    async def state(self) -> Json:
        """How the breaker stands here, and when it moved."""
        return {
            "state": self._breaker.effective.value,
            "moves": self._moves.seen,
            "failures": self._breaker.fail_counter,
            "budget": self._breaker.budget.left,
        }


async def main(options: Json) -> None:
    """Carry out the commands on standard input until it ends."""
    policy = BreakerPolicy(**options["policy"])
    breakers = Breakers(policies={SERVICE: policy})
    profile = RetryProfile(**options["profile"])
    async with AsyncExitStack() as stack:
        patience = options["patience"]
        open_it = open_redis if patience > PATIENCE else open_hasty_redis
        redis = await stack.enter_async_context(open_it(options["redis"]))
        name = f"caller:{os.getpid()}"
        await stack.enter_async_context(breakers.shared(redis, process=name, patience=patience))
        client = create_resilient_client(
            SERVICE, base_url=options["server"], breakers=breakers, profile=profile, max_concurrency=100
        )
        await stack.enter_async_context(client)
        caller = Caller(client, breakers.get(SERVICE))
        commands: dict[str, Callable[..., Coroutine[Any, Any, Json]]] = {
            "calls": caller.calls,
            "until_good": caller.until_good,
            "state": caller.state,
        }
        print(json.dumps({"ready": True}), flush=True)  # noqa: T201
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        while line := await lines.readline():
            command = json.loads(line)
            answer = await commands[command.pop("do")](**command)
            print(json.dumps(answer), flush=True)  # noqa: T201


@dataclass
class CallerProcess:
    """One such process, as a test holds it."""

    process: asyncio.subprocess.Process
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def do(self, command: str, **arguments: Any) -> Json:
        """The answer to one command."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        async with self._busy:
            self.process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
            answer: Json = json.loads(await self.process.stdout.readline())
        return answer


async def all_do(callers: Sequence[CallerProcess], command: str, **arguments: Any) -> list[Json]:
    """The answers of all to one command, given at once."""
    return await asyncio.gather(*(caller.do(command, **arguments) for caller in callers))


@asynccontextmanager
async def callers(
    number: int,
    *,
    redis: str,
    server: str,
    policy: Json | None = None,
    profile: Json | None = None,
    patience: float = 5.0,
) -> AsyncIterator[list[CallerProcess]]:
    """So many processes, ready.

    ``patience``: the seconds that Redis has for an answer; more than ``PATIENCE``, so that no busy machine
    makes it look silent.
    """
    once = {"attempts": 1, "shortest": 0.0, "longest": 0.0, "attempt_timeout": 5.0, "total": 30.0}
    options = {
        "redis": redis,
        "server": server,
        "policy": policy or {},
        "profile": once | (profile or {}),
        "patience": patience,
    }
    started = [
        CallerProcess(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.resilience.caller", json.dumps(options)),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=2**24,
            )
        )
        for _ in range(number)
    ]
    try:
        for caller in started:
            assert caller.process.stdout is not None
            assert json.loads(await asyncio.wait_for(caller.process.stdout.readline(), 30)) == {"ready": True}
        yield started
    finally:
        for caller in started:
            if caller.process.returncode is None:
                caller.process.kill()
            await caller.process.wait()


if __name__ == "__main__":
    telemetry.setup(process="caller", level="error")
    asyncio.run(main(json.loads(sys.argv[1])))
