# SPDX-License-Identifier: Apache-2.0
"""Whatever another system says can be kept: what no text of PostgreSQL can hold is left out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app.runtime import Runtime
from app.storable import storable, storable_json

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)
ECHO = text("SELECT :value").bindparams(bindparam("value", type_=JSONB)).columns(value=JSONB)


@given(ANY_TEXT)
def test_any_text_can_be_stored_and_one_that_could_stays_as_it_was(said: str) -> None:
    kept = storable(said)

    assert "\x00" not in kept.encode().decode()
    assert storable(kept) == kept
    if "\x00" not in said and not any("\ud800" <= each <= "\udfff" for each in said):
        assert kept == said


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"version": "1\x00.0"}, {"version": "1.0"}),
        ({"na\x00me": ["half \ud83d", None, 1]}, {"name": ["half \ufffd", None, 1]}),
        (["whole \U0001f600"], ["whole \U0001f600"]),
        ("what looks like one: \\u0000", "what looks like one: \\u0000"),
    ],
)
async def test_any_document_can_be_stored(session: AsyncSession, said: Any, kept: Any) -> None:
    assert await session.scalar(ECHO, {"value": said}) == kept


async def test_the_product_stores_it_so(runtime: Runtime) -> None:
    async with runtime.transaction() as session:
        assert await session.scalar(ECHO, {"value": {"error": "no\x00thing"}}) == {"error": "nothing"}


def test_a_document_is_written_as_json_is() -> None:
    assert storable_json({"a": [1, "\xe9", True, None]}) == '{"a": [1, "\\u00e9", true, null]}'
