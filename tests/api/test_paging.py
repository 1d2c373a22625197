# SPDX-License-Identifier: Apache-2.0
"""Cursors by themselves."""

from dataclasses import replace

import pytest

from app.api.paging import CursorKey, PageRequest
from app.errors import Invalid

KEY: CursorKey[int] = CursorKey(int)
FIRST = PageRequest(50, None, "a list")


@pytest.mark.parametrize("key", [7, 42, 100, 1000, 10_000, 2_000_000_000])
def test_a_key_of_any_length_comes_back(key: int) -> None:
    assert KEY.decode(replace(FIRST, cursor=KEY.encode(key, FIRST))) == key


def test_the_last_page_has_no_cursor_and_the_first_no_key() -> None:
    assert KEY.encode(None, FIRST) is None
    assert KEY.decode(FIRST) is None


def test_a_cursor_of_another_list_is_refused() -> None:
    foreign = PageRequest(50, KEY.encode(7, FIRST), "another list")

    with pytest.raises(Invalid):
        KEY.decode(foreign)
