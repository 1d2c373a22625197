# SPDX-License-Identifier: Apache-2.0
import io
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import structlog

from app import telemetry
from app.telemetry import Trace


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a process that logs has written."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    telemetry.setup(process="api", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def read(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_line_is_json_with_process_time_and_correlation_id(lines: io.StringIO) -> None:
    identity = uuid4()

    with telemetry.correlated(identity, operation_id="42"):
        telemetry.logger("a").info("something_happened", number=3)
    telemetry.logger("a").info("something_else")

    first, second = read(lines)
    assert (first["event"], first["number"], first["operation_id"]) == ("something_happened", 3, "42")
    assert (first["process"], first["level"], first["logger"]) == ("api", "info", "a")
    assert first["correlation_id"] == str(identity)
    assert len(first["trace_id"]) == 32
    assert first["timestamp"].endswith("Z")
    assert "correlation_id" not in second


def test_lines_of_libraries_look_the_same(lines: io.StringIO) -> None:
    with telemetry.correlated(uuid4()):
        logging.getLogger("some.library").warning("took %s s", 3, extra={"token": "geheim"})

    (line,) = read(lines)
    assert (line["event"], line["level"], line["process"]) == ("took 3 s", "warning", "api")
    assert "correlation_id" in line
    assert "geheim" not in lines.getvalue()


@pytest.mark.parametrize(
    "facts",
    [
        {"authorization": "Bearer geheim-geheim"},
        {"access_token": "geheim"},
        {"settings": {"client_secret": "geheim", "deep": [{"password": "geheim"}]}},
        {"headers": ["Authorization: Bearer geheim.geheim.geheim"]},
        {"url": "redis://user:geheim@cache:6379/0"},
        {"url": "https://store.blob.core.windows.net/x?sv=1&sig=geheim%3D&se=2"},
        {"body": "grant_type=client_credentials&client_secret=geheim&scope=x"},
    ],
    ids=["header", "token", "nested", "bearer text", "URL", "SAS", "form"],
)
def test_no_secret_reaches_a_line(lines: io.StringIO, facts: dict[str, Any]) -> None:
    telemetry.logger("a").warning("sent", **facts)

    assert "geheim" not in lines.getvalue()
    assert "[redacted]" in lines.getvalue()


def test_no_secret_reaches_a_traceback(lines: io.StringIO) -> None:
    try:
        int("Authorization: Bearer geheim-geheim")
    except ValueError:
        telemetry.logger("a").exception("failed")

    (line,) = read(lines)
    assert "ValueError" in line["exception"]
    assert "geheim" not in lines.getvalue()


def test_what_is_no_secret_is_left_alone() -> None:
    facts = {"device": "LAB-1", "number": 3, "url": "https://graph.example.com/v1.0/x?top=5", "none": None}

    assert telemetry.redact(facts) == facts


@pytest.mark.parametrize("words", ["a basic installation", "Basic authentication"])
def test_words_that_follow_the_name_of_a_scheme_stay(words: str) -> None:
    assert telemetry.redact_text(words) == words
    assert telemetry.redact_text(f"{words}: Basic dXNlcjpwdw==") == f"{words}: Basic [redacted]"


HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_trace_is_continued() -> None:
    trace = Trace.parse(HEADER)

    assert trace is not None
    assert trace.header == HEADER
    child = trace.child()
    assert (child.trace_id, child.sampled) == (trace.trace_id, True)
    assert child.span_id != trace.span_id
    assert Trace.parse(child.header) == child


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "junk",
        HEADER.upper(),
        HEADER.replace("00-4", "ff-4"),
        HEADER + "-more",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
    ],
)
def test_a_malformed_trace_is_ignored(header: str | None) -> None:
    assert Trace.parse(header) is None


def test_a_later_version_of_the_header_is_understood() -> None:
    assert Trace.parse("01" + HEADER[2:] + "-what.comes") == Trace.parse(HEADER)


def test_inside_a_correlation_there_is_a_trace_and_outside_there_is_none() -> None:
    with telemetry.correlated(uuid4()):
        outer = telemetry.trace.get()
        with telemetry.correlated(uuid4()):
            inner = telemetry.trace.get()

    assert outer is not None
    assert inner is not None
    assert inner.trace_id == outer.trace_id
    assert inner.span_id != outer.span_id
    assert telemetry.trace.get() is None
    assert telemetry.correlation_id.get() is None


def test_metrics_are_in_prometheus_text() -> None:
    telemetry.wake_ups.inc(0)

    assert b"# TYPE eucora_wake_ups_total counter" in telemetry.metrics()
