# SPDX-License-Identifier: Apache-2.0
"""What stands between this product and everything it calls. It knows nobody who uses it."""

from app.resilience.breaker import SERVICES, Breakers, ServiceBreaker, get_breaker
from app.resilience.classify import Safety
from app.resilience.http import ResilientClient, create_resilient_client
from app.resilience.retry import DEFAULT_RETRY, NO_RETRY, SLOW_SERVICE_RETRY, TRANSIENT_RETRY, RetryProfile

__all__ = [
    "DEFAULT_RETRY",
    "NO_RETRY",
    "SERVICES",
    "SLOW_SERVICE_RETRY",
    "TRANSIENT_RETRY",
    "Breakers",
    "ResilientClient",
    "RetryProfile",
    "Safety",
    "ServiceBreaker",
    "create_resilient_client",
    "get_breaker",
]
