# SPDX-License-Identifier: Apache-2.0
"""The declarative base: constraint names, identifiers, instants and enums, the same for every table."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import DateTime, Enum, MetaData, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column
from uuid_utils.compat import uuid7

NAMING = {
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
}


def new_id() -> UUID:
    """A UUIDv7: later ids of one process sort after earlier ones."""
    return uuid7()


Id = Annotated[UUID, mapped_column(primary_key=True, default=new_id)]
Instant = Annotated[datetime, mapped_column(DateTime(timezone=True))]
Created = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.now())]
Json = dict[str, Any]

WRITTEN_OFTEN: dict[str, Any] = {"postgresql_with": {"autovacuum_vacuum_scale_factor": "0.01"}}
"""For a table whose new rows change many times and whose old ones are kept: what is left of changes must not
wait for a fifth of all that is kept."""


def enum_column(kind: type[StrEnum], name: str) -> Enum:
    """A PostgreSQL enum type called ``name`` that stores the values, not the Python member names."""
    return Enum(kind, name=name, values_callable=lambda members: [member.value for member in members])


class Base(DeclarativeBase):
    """Root of every table."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy, which declares it an instance attribute
        str: Text(),
        datetime: DateTime(timezone=True),
        Json: JSONB(none_as_null=True),
        list[Json]: JSONB(none_as_null=True),
    }
