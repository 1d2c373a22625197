# SPDX-License-Identifier: Apache-2.0
"""The database's address, as it is set and as it is told when it is wrong."""

import pytest
from pydantic import SecretStr

from app.database import database_url
from app.errors import Invalid
from app.settings import Settings


@pytest.mark.parametrize("text", ["foo", "", "postgresql://u:hidden@h:port/x", "mysql://u:hidden@h/x"])
def test_an_address_that_is_none_is_told_by_its_setting_and_not_repeated(text: str) -> None:
    with pytest.raises(Invalid, match="EUCORA_DATABASE_URL must be a URL") as raised:
        database_url(Settings(database_url=SecretStr(text)))

    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg", "postgresql+psycopg"])
def test_any_postgresql_scheme_is_spoken_by_asyncpg(scheme: str) -> None:
    url = database_url(Settings(database_url=SecretStr(f"{scheme}://u:p%40ss@h:5433/x")))

    assert (url.drivername, url.password, url.port) == ("postgresql+asyncpg", "p@ss", 5433)
