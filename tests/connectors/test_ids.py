# SPDX-License-Identifier: Apache-2.0
"""A set of very many ids."""

from uuid import UUID

from app.connectors.intune.ids import Ids

MANY = 20_000


def guid(number: int) -> str:
    return str(UUID(int=number))


def test_it_has_what_was_added_and_nothing_else() -> None:
    ids = Ids()
    for number in [*range(MANY), *range(100)]:
        ids.add(guid(number))

    assert all(guid(number) in ids for number in range(MANY))
    assert not any(guid(number) in ids for number in range(MANY, 2 * MANY))
    assert "" not in ids


def test_an_id_is_held_once_however_often_it_is_added() -> None:
    ids = Ids()
    for number in [*range(MANY), *range(MANY)]:
        ids.add(guid(number))

    assert len(ids) == MANY
