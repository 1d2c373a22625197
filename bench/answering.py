# SPDX-License-Identifier: Apache-2.0
"""A server in a process of its own that answers at once, and counts."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Answering(asyncio.Protocol):
    """One connection; a request may have a body, if it says how long."""

    counted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is answered over."""
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._rest += data
        while (head := self._rest.find(b"\r\n\r\n") + 4) > 3:
            size = head + body_length(self._rest[:head])
            if len(self._rest) < size:
                return
            request, self._rest = self._rest[:size], self._rest[size:]
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET /count"):
            body = str(Answering.counted).encode()
            self._write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        else:
            Answering.counted += 1
            self._write(ANSWER)

    def _write(self, answer: bytes) -> None:
        assert isinstance(self._transport, asyncio.WriteTransport)
        self._transport.write(answer)


def body_length(head: bytes) -> int:
    """What the head of a request says of its body."""
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest[: rest.index(b"\r")]) if found else 0


@dataclass(frozen=True, slots=True)
class Server:
    """Where it is."""

    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def count(self) -> int:
        """How many requests it has answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /count HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        counted = int(await reader.read(20))
        writer.close()
        return counted


@asynccontextmanager
async def answering() -> AsyncIterator[Server]:
    """One that ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.answering"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield Server(int(await process.stdout.readline()))
    finally:
        process.kill()
        await process.wait()


async def serve() -> None:
    """On a free port, which is printed."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
