# SPDX-License-Identifier: Apache-2.0
"""Maintenance windows: local hours of a named time zone, over midnight and over the change of clocks."""

from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.calendars import Calendar, Span, Weekday, check_zone
from app.errors import Invalid

BERLIN = "Europe/Berlin"
MONDAY = (Weekday.MONDAY,)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def calendar(start: str, end: str, *days: Weekday, zone: str = BERLIN) -> Calendar:
    return Calendar(zone, (Span(days or tuple(Weekday), time.fromisoformat(start), time.fromisoformat(end)),))


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-06-01T19:59", False),
        ("2026-06-01T20:00", True),
        ("2026-06-02T01:59", True),
        ("2026-06-02T02:00", False),
        ("2026-06-02T20:00", False),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins(moment: str, is_open: bool) -> None:  # noqa: FBT001
    assert calendar("22:00", "04:00", *MONDAY).is_open(at(moment)) is is_open


def test_it_keeps_its_local_hour_when_the_clocks_change() -> None:
    nightly = calendar("22:00", "23:00")

    assert nightly.opens(at("2026-10-24T12:00")) == at("2026-10-24T20:00")
    assert nightly.opens(at("2026-10-25T12:00")) == at("2026-10-25T21:00")


def test_an_hour_that_the_clocks_skip_is_moved_behind_the_gap() -> None:
    begins, ends = Span(tuple(Weekday), time(2, 30), time(4)).on(
        at("2026-03-29T00:00").date(),
        calendar("02:30", "04:00")._zone,
    ) or (None, None)

    assert (begins, ends) == (at("2026-03-29T01:30"), at("2026-03-29T02:00"))


def test_the_same_start_and_end_is_a_whole_day() -> None:
    whole = calendar("00:00", "00:00", Weekday.SATURDAY, zone="UTC")

    assert whole.is_open(at("2026-06-06T00:00"))
    assert whole.is_open(at("2026-06-06T23:59"))
    assert not whole.is_open(at("2026-06-07T00:00"))


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "x" * 200, "europe berlin"])
def test_a_zone_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_zone(name)

    assert [wrong.pointer for wrong in refused.value.errors] == ["/timezone"]


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC)),  # noqa: DTZ001
    st.sampled_from([BERLIN, "America/New_York", "Asia/Kolkata", "Pacific/Apia", "UTC"]),
    st.sets(st.sampled_from(Weekday), min_size=1),
    st.tuples(st.times(), st.times()),
)
def test_a_closed_window_opens_within_eight_days_and_is_open_then(
    moment: datetime, zone: str, days: set[Weekday], hours: tuple[time, time]
) -> None:
    made = Calendar(zone, (Span(tuple(days), *hours),))

    opens = made.opens(moment)

    assert opens is not None
    assert moment < opens <= moment + timedelta(days=9)
    # A span that lies in an hour the clocks skip lasts for no time on that day.
    assert made.is_open(opens) or any(
        begins == opens and ends <= begins for begins, ends in made._around(moment)
    )


def test_it_is_stored_as_it_was_given() -> None:
    span = Span((Weekday.MONDAY, Weekday.FRIDAY), time(22), time(4, 30))

    assert Span.from_json(span.to_json()) == span
