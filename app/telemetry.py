# SPDX-License-Identifier: Apache-2.0
"""What a process tells about itself: JSON log lines with their correlation id, traces and metrics."""

import logging
import re
import secrets
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, TextIO
from uuid import UUID

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic_core import to_json
from structlog.typing import Processor

SECRET_KEY = re.compile(
    r"authorization|token|secret|password|passwd|api_?key|cookie|credential|signature", re.IGNORECASE
)
SECRET_TEXT = (
    (re.compile(r"\b(bearer)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), r"\1 [redacted]"),
    (re.compile(r"\b((?i:basic))\s+(?=\S*[A-Z0-9=+/])[A-Za-z0-9+/=]{6,}"), r"\1 [redacted]"),
    (re.compile(r"\b(\w+(?:\+\w+)?://[^\s:/@]*):[^\s@/]+@"), r"\1:[redacted]@"),
    (
        re.compile(
            r"\b(sig|client_secret|password|access_token|refresh_token|assertion)=[^&\s\"']+", re.IGNORECASE
        ),
        r"\1=[redacted]",
    ),
)
REDACTED = "[redacted]"

correlation_id: ContextVar[UUID | None] = ContextVar("correlation_id", default=None)
trace: ContextVar["Trace | None"] = ContextVar("trace", default=None)

registry = CollectorRegistry()
operations_ended = Counter(
    "eucora_operations_ended_total",
    "Runs of operations by kind and outcome.",
    ("kind", "outcome"),
    registry=registry,
)
operation_seconds = Histogram(
    "eucora_operation_run_seconds",
    "How long one run of an operation took.",
    ("kind",),
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 30, 60, 120, 300),
    registry=registry,
)
operations_running = Gauge("eucora_operations_running", "Operations this process holds.", registry=registry)
operation_deferrals = Counter(
    "eucora_operation_deferrals_total",
    "Runs that were put off without spending an attempt, by the code of the reason.",
    ("kind", "service", "reason"),
    registry=registry,
)
loop_lag = Histogram(
    "eucora_loop_lag_seconds",
    "How late the event loop came to what was due.",
    buckets=(0.005, 0.025, 0.1, 0.25, 1, 2.5, 10, 30, 60),
    registry=registry,
)
oldest_state = Gauge(
    "eucora_oldest_state_age_ratio",
    "Age of the oldest in each state that is not final, by the longest it may be in it; stays below 1.",
    ("machine", "state"),
    registry=registry,
)
relay_failures = Counter(
    "eucora_relay_failures_total",
    "Rounds of a relay that PostgreSQL or Redis broke off: work waits meanwhile and is not lost.",
    ("step",),
    registry=registry,
)
ai_calls = Counter(
    "eucora_ai_calls_total",
    "Questions to the language model, by what became of them.",
    ("provider", "outcome"),
    registry=registry,
)
ai_tokens = Counter(
    "eucora_ai_tokens_total",
    "Tokens of questions and answers.",
    ("provider", "direction"),
    registry=registry,
)
ai_seconds = Histogram(
    "eucora_ai_call_seconds",
    "How long an answer of the language model took, to its end.",
    ("provider",),
    buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 100),
    registry=registry,
)
ai_denied = Counter(
    "eucora_ai_denied_total",
    "What the language model asked for and did not get.",
    ("reason",),
    registry=registry,
)
ai_actions = Counter(
    "eucora_ai_actions_total",
    "Approved actions of the assistant's proposals, by what became of them.",
    ("action", "outcome"),
    registry=registry,
)
wake_ups = Counter("eucora_wake_ups_total", "Due operations pushed to the queues.", registry=registry)


def metrics() -> bytes:
    """All metrics of this process, in Prometheus' text format."""
    return generate_latest(registry)


@dataclass(frozen=True, slots=True)
class Trace:
    """A place in a W3C trace: ids in lower-case hex, as in the ``traceparent`` header."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @classmethod
    def begin(cls) -> Self:
        """A new trace."""
        digits = secrets.token_hex(24)
        return cls(digits[:32], digits[32:])

    @classmethod
    def parse(cls, header: str | None) -> Self | None:
        """The trace a caller sent; None where there is none or it is malformed, as the standard asks."""
        found = re.fullmatch(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", header or "")
        if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
            return None
        if set(found[2]) == {"0"} or set(found[3]) == {"0"}:
            return None
        return cls(found[2], found[3], sampled=bool(int(found[4], 16) & 1))

    def child(self) -> Self:
        """A step inside the same trace."""
        return type(self)(self.trace_id, secrets.token_hex(8), self.sampled)

    @property
    def header(self) -> str:
        """As it is sent on: the value of ``traceparent``."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


@contextmanager
def correlated(identity: UUID, **facts: object) -> Iterator[None]:
    """Put the correlation id and ``facts`` on every log line inside, and begin a trace if there is none."""
    outer = trace.get()
    token, span = correlation_id.set(identity), trace.set(outer.child() if outer else Trace.begin())
    try:
        with structlog.contextvars.bound_contextvars(**facts) if facts else nullcontext():
            yield
    finally:
        trace.reset(span)
        correlation_id.reset(token)


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: ``log.info("what_happened", key=value)``."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return bound


class Lines(logging.StreamHandler[TextIO]):
    """Where this process's lines go."""

    def __init__(self, stream: TextIO, process: str) -> None:
        super().__init__(stream)
        self.process = process

    def tell(self, event: str, **facts: str | float | None) -> None:
        """Write plain facts, no secrets, at level info, past the logger's detours.

        For what is told of every request: the detours cost a tenth of it.
        """
        if logging.getLogger().isEnabledFor(logging.INFO):
            at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            line = {"event": event, **facts, "level": "info", "timestamp": at, "process": self.process}
            self.stream.write(to_json(with_context(None, "", line), ensure_ascii=True).decode() + "\n")
            self.flush()


def tell(event: str, **facts: str | float | None) -> None:
    """``Lines.tell`` of this process; nothing before ``setup``."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Lines):
            handler.tell(event, **facts)


def redact_text(text: str) -> str:
    """``text`` without bearer tokens, passwords in URLs and signed query values."""
    for pattern, replacement in SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def redact(value: Any, *, key: str = "") -> Any:
    """``value`` without secrets, however deep: what stands under a telling key, and telling text anywhere."""
    if SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {name: redact(inner, key=str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return value


def without_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor that applies ``redact`` to a whole line."""
    return {name: redact(value, key=name) for name, value in event.items()}


def with_context(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the correlation id and the trace to a line."""
    if (identity := correlation_id.get()) is not None:
        event.setdefault("correlation_id", str(identity))
    if (place := trace.get()) is not None:
        event.setdefault("trace_id", place.trace_id)
    return event


def setup(*, process: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log line of this process, libraries included, to standard error as JSON, one per line."""

    def named(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        named,
        with_context,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = Lines(stream or sys.stderr, process)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                without_secrets,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # arq tells each start and end at INFO; the runner tells the same with the correlation id.
    for chatty in ("arq", "httpx", "httpcore", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
