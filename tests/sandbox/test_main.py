# SPDX-License-Identifier: Apache-2.0
"""The sandbox as a process: health, restart after a kill, memory."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.sandbox.tenant import Clock, Sealed, Tenant, seal, until
from tests.wire import PLAIN

PROGRAM = """
import sys
from pathlib import Path
from sandbox.main import run
run(int(sys.argv[1]), Path(sys.argv[2]))
"""
ROOT = Path(__file__).resolve().parents[2]


class RealTime(Clock):
    """The clock of a sandbox in another process cannot be set."""

    def __call__(self) -> float:
        return time.time()

    def advance(self, seconds: float) -> None:
        time.sleep(seconds)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(port: int, state: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The sandbox as its own process, killed at the end if it still lives."""
    command = [sys.executable, "-c", PROGRAM, str(port), str(state)]
    process = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url), holds=bool)
        yield process, url
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", verify=PLAIN).is_success
    except httpx.TransportError:
        return False


def test_health_names_the_planes_and_the_models(tenant: Tenant) -> None:
    assert httpx.get(f"{tenant.url}/health").json() == {
        "status": "ok",
        "planes": ["ansible", "intune", "jamf", "landscape", "sccm"],
        "models": ["anthropic", "openai"],
    }


def test_a_kill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    port, state, sealed = free_port(), tmp_path / "sandbox.jsonl", seal(b"content" * 10_000)
    with running(port, state) as (process, url):
        tenant = Tenant(url, RealTime())
        tenant.control("fleet", {"rings": {"LAB": {"devices": 5, "delay": [0.0, 0.0]}}})
        installed = tenant.publish("Installed")
        tenant.assign(installed, "LAB")
        half_done = tenant.create("Half done", **{"X-Effect-Key": "k"})
        path = tenant.open_file(half_done, sealed)
        tenant.put_blocks(path, sealed)
        tenant.graph.post(f"{path}/commit", json={"fileEncryptionInfo": dict(sealed.info)})
        tenant.fault(path="/nowhere", status=500)
        before = [tenant.control(name) for name in ("objects", "fleet", "faults", "devices")]
        seen = tenant.control("requests")["mutations"]
        token = tenant.graph.headers["authorization"]
        process.kill()
        process.wait()
        tenant.close()

    with running(port, state) as (_, url):
        tenant = Tenant(url, RealTime())
        tenant.graph.headers["authorization"] = token
        assert [tenant.control(name) for name in ("objects", "fleet", "faults", "devices")] == before
        assert tenant.control("requests")["mutations"] == seen
        assert tenant.states(installed) == {"Installed": 5}
        until(
            lambda: tenant.graph.get(path).json()["uploadState"], holds=lambda at: at == "commitFileSuccess"
        )
        tenant.close()


def test_a_polite_end_is_quick_and_writes_the_counts(tmp_path: Path) -> None:
    port, state = free_port(), tmp_path / "sandbox.jsonl"
    with running(port, state) as (process, url):
        tenant = Tenant(url, RealTime())
        tenant.graph.get("/organization")
        tenant.close()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=5)

    with running(port, state) as (_, url):
        counts = httpx.get(f"{url}/intune/_sandbox/requests").json()["counts"]
        assert counts == {"POST /oauth2/v2.0/token": 1, "GET /organization": 1}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_big_upload_is_never_whole_in_memory(tmp_path: Path) -> None:
    sealed = seal(os.urandom(64 * 2**20))
    with running(free_port(), tmp_path / "sandbox.jsonl") as (process, url):
        tenant = Tenant(url, RealTime())
        upload(tenant, seal(b"small"))  # so that all code is loaded
        before = peak_memory(process.pid)

        upload(tenant, sealed)

        assert peak_memory(process.pid) - before < 32 * 2**20
        tenant.close()


def upload(tenant: Tenant, sealed: Sealed) -> None:
    path = tenant.open_file(tenant.create(), sealed)
    tenant.put_blocks(path, sealed, size=8 * 2**20)
    assert tenant.commit(path, sealed.info) == "commitFileSuccess"


def peak_memory(pid: int) -> int:
    """The most bytes the process ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
