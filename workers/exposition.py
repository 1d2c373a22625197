# SPDX-License-Identifier: Apache-2.0
"""The metrics of a worker process over HTTP, served by a thread: they can be read while the loop hangs."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import start_http_server

from app import telemetry
from app.settings import WorkerSettings

log = telemetry.logger(__name__)


@contextmanager
def exposition(limits: WorkerSettings) -> Iterator[str]:
    """Serve ``/metrics`` while the block runs; its URL.

    Several workers share a machine: one that finds its port taken serves on a free one, and says so.
    """
    host = limits.metrics_host
    try:
        server, thread = start_http_server(limits.metrics_port, host, telemetry.registry)
    except OSError as error:
        log.warning("metrics_port_taken", port=limits.metrics_port, error=repr(error))
        server, thread = start_http_server(0, host, telemetry.registry)
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
