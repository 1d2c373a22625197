# SPDX-License-Identifier: Apache-2.0
"""What stands between this product and everything it calls. It knows nobody who uses it."""

from app.resilience.breaker import BreakerOpen, ServiceBreaker
from app.resilience.classify import Safety
from app.resilience.file_body import FileBody
from app.resilience.http import ResilientClient, create_resilient_client
from app.resilience.registry import (
    Breakers,
    call,
    check_breaker_status,
    get_all_breaker_status,
    get_breaker,
    reset_breaker,
    with_circuit_breaker,
)
from app.resilience.retry import DEFAULT_RETRY, NO_RETRY, SLOW_SERVICE_RETRY, TRANSIENT_RETRY, RetryProfile
from app.resilience.status import SERVICES, BreakerPolicy, BreakerState, BreakerStatus, UnknownService

__all__ = [
    "DEFAULT_RETRY",
    "NO_RETRY",
    "SERVICES",
    "SLOW_SERVICE_RETRY",
    "TRANSIENT_RETRY",
    "BreakerOpen",
    "BreakerPolicy",
    "BreakerState",
    "BreakerStatus",
    "Breakers",
    "FileBody",
    "ResilientClient",
    "RetryProfile",
    "Safety",
    "ServiceBreaker",
    "UnknownService",
    "call",
    "check_breaker_status",
    "create_resilient_client",
    "get_all_breaker_status",
    "get_breaker",
    "reset_breaker",
    "with_circuit_breaker",
]
