# SPDX-License-Identifier: Apache-2.0
"""How long to leave a provider alone, by what its answers tell of its rate limits.

OpenAI: ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, the reset a duration as of Go (``12ms``,
``6m0s``). Anthropic: ``anthropic-ratelimit-{what}-{limit,remaining,reset}``, the reset as an instant of
RFC 3339 (anthropic SDK 0.121.0 names the family). Azure sends -1 or 0 where it has no limit.
"""

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_PAUSE = 24 * 3600.0
LONGEST_HINT = 60.0
"""Of a pause that a good answer tells: a reset is when all is there again, not when one request fits."""
OPENAI_LIMITS = "requests", "tokens"
ANTHROPIC_LIMITS = "requests", "tokens", "input-tokens", "output-tokens"
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|μs|ns)", re.ASCII)
DURATION = re.compile(rf"(?:{PART.pattern})+", re.ASCII)


def pause(headers: Mapping[str, str], *, longest: float = LONGEST_PAUSE) -> float:
    """Seconds until all limits that are used up begin anew; 0: none is, or it is not told.

    At most ``longest``, a day by default. ``headers`` by names in lower case, or of any case if the mapping
    does not mind.
    """
    return min(max((0.0, *_resets(headers))), longest)


def _resets(headers: Mapping[str, str]) -> Iterator[float]:
    for what in OPENAI_LIMITS:
        if _is_used_up(headers, f"x-ratelimit-limit-{what}", f"x-ratelimit-remaining-{what}"):
            yield duration(headers.get(f"x-ratelimit-reset-{what}", ""))
    for what in ANTHROPIC_LIMITS:
        family = f"anthropic-ratelimit-{what}"
        if _is_used_up(headers, f"{family}-limit", f"{family}-remaining"):
            yield _until(headers.get(f"{family}-reset", ""), headers.get("date", ""))


def _is_used_up(headers: Mapping[str, str], limit: str, remaining: str) -> bool:
    return _number(headers.get(limit, "")) > 0 and _number(headers.get(remaining, "")) == 0


def _number(text: str) -> float:
    """Below zero where it is none."""
    try:
        number = float(text)
    except ValueError:
        return -1.0
    return number if math.isfinite(number) else -1.0


def duration(text: str) -> float:
    """Seconds of a duration as Go writes it; 0 where it is none."""
    if not DURATION.fullmatch(text.strip()):
        return 0.0
    return sum(float(number) * UNITS[unit] for number, unit in PART.findall(text))


def _until(instant: str, served_at: str) -> float:
    """Seconds from the answer's own ``Date`` to an instant; 0 where either cannot be read."""
    try:
        end, begin = datetime.fromisoformat(instant), parsedate_to_datetime(served_at)
        return (_aware(end) - _aware(begin)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
