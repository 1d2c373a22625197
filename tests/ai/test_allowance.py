# SPDX-License-Identifier: Apache-2.0
"""What providers' answers tell of their rate limits."""

import httpx
import pytest

from app.ai.allowance import LONGEST_HINT, duration, pause

DATE = "Wed, 21 Oct 2026 10:00:00 GMT"
Headers = dict[str, str]


def openai(what: str, limit: str, remaining: str, reset: str) -> Headers:
    return {
        f"x-ratelimit-limit-{what}": limit,
        f"x-ratelimit-remaining-{what}": remaining,
        f"x-ratelimit-reset-{what}": reset,
    }


def anthropic(what: str, limit: str, remaining: str, reset: str) -> Headers:
    family = f"anthropic-ratelimit-{what}"
    return {f"{family}-limit": limit, f"{family}-remaining": remaining, f"{family}-reset": reset}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1m30.5s", 90.5),
        ("6m0s", 360.0),
        ("1h2m", 3720.0),
        ("0s", 0.0),
        (".5s", 0.5),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("3ns", 3e-9),
        (" 2s ", 2.0),
        ("", 0.0),
        ("7", 0.0),
        ("-7s", 0.0),
        ("7s later", 0.0),
        ("soon", 0.0),
        ("１s", 0.0),  # noqa: RUF001 - a digit, though no ASCII one
    ],
)
def test_a_duration_is_read_as_go_writes_it(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        (openai("requests", "60", "0", "1s"), 1.0),
        (openai("tokens", "60", "0", "6m0s") | openai("requests", "60", "0", "1s"), 360.0),
        (openai("tokens", "60", "1", "6m0s"), 0.0),
        (openai("tokens", "-1", "0", "6m0s"), 0.0),
        (openai("tokens", "0", "0", "6m0s"), 0.0),
        (openai("tokens", "60", "-1", "6m0s"), 0.0),
        (openai("tokens", "many", "0", "6m0s"), 0.0),
        (openai("tokens", "60", "", "6m0s"), 0.0),
        (openai("tokens", "nan", "nan", "6m0s"), 0.0),
        (openai("tokens", "60", "0", "99h"), 86400.0),
        (openai("tokens", "60", "0", "9" * 400 + "h"), 86400.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6s"}, 0.0),
        (anthropic("requests", "50", "0", "2026-10-21T10:00:07Z") | {"date": DATE}, 7.0),
        (anthropic("input-tokens", "50", "0", "2026-10-21T12:00:30+02:00") | {"date": DATE}, 30.0),
        (anthropic("output-tokens", "50", "0", "2026-10-21T10:00:30") | {"date": DATE}, 30.0),
        (anthropic("tokens", "50", "0", "2026-10-21T09:00:00Z") | {"date": DATE}, 0.0),
        (anthropic("tokens", "50", "3", "2026-10-21T10:00:07Z") | {"date": DATE}, 0.0),
        (anthropic("tokens", "50", "0", "2026-10-21T10:00:07Z"), 0.0),
        (anthropic("tokens", "50", "0", "soon") | {"date": DATE}, 0.0),
        (anthropic("tokens", "50", "0", "2027-10-21T10:00:07Z") | {"date": DATE}, 86400.0),
    ],
)
def test_a_pause_lasts_until_what_is_used_up_begins_anew(headers: Headers, seconds: float) -> None:
    assert pause(headers) == pytest.approx(seconds)
    assert pause(httpx.Headers(headers)) == pytest.approx(seconds)


def test_a_good_answer_keeps_nobody_away_for_longer_than_a_minute() -> None:
    headers = openai("requests", "60", "0", "23h")

    assert pause(headers, longest=LONGEST_HINT) == 60.0
    assert pause(headers) == 23 * 3600.0
