# SPDX-License-Identifier: Apache-2.0
"""Conversations with the assistant: what was said, and how far an answer has come."""

from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Created, Id, Instant, Json, enum_column


class MessageRole(StrEnum):
    """Who says it."""

    USER = "user"
    ASSISTANT = "assistant"


class MessageStatus(StrEnum):
    """Where a message stands. INCOMPLETE ended without its end: what there is of it is kept."""

    PENDING = "PENDING"
    ANSWERING = "ANSWERING"
    COMPLETE = "COMPLETE"
    INCOMPLETE = "INCOMPLETE"


class Conversation(Base):
    """Messages in order. ``last_sequence`` is the newest one's.

    ``summary`` stands for the messages up to ``summarised_through`` when the model is asked.
    """

    __tablename__ = "conversations"
    __table_args__ = (
        CheckConstraint("last_sequence >= 0", name="last_sequence"),
        CheckConstraint("summarised_through BETWEEN 0 AND last_sequence", name="summarised_through"),
        Index("ix_conversations_created", text("created_at DESC"), text("id DESC")),
    )

    id: Mapped[Id]
    correlation_id: Mapped[UUID]
    title: Mapped[str]
    created_by: Mapped[str]
    last_sequence: Mapped[int] = mapped_column(server_default=text("0"))
    summary: Mapped[str | None]
    summarised_through: Mapped[int] = mapped_column(server_default=text("0"))
    operation_id: Mapped[UUID | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Created]
    updated_at: Mapped[Created]


class Message(Base):
    """One thing said; of the assistant's at most one per conversation is being written.

    ``author`` is who said it, or who is answered; ``author_id`` is the token whose permissions an answer is
    made under. ``steps`` are the finished rounds of an answer: what was asked for, and all that was read,
    which is much and not loaded by itself; ``tool_calls`` what is shown of them, in order. ``run`` counts how
    often it was begun from nothing. ``content`` is its last round as far as it has come, ``draft`` the number
    of that text: a reader of an older one begins anew. ``citations`` are ids that the answer names and the
    assistant has read, ``unverified`` those that it names and has not.
    """

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("conversation_id", "sequence"),
        CheckConstraint("sequence >= 1", name="sequence"),
        CheckConstraint("run >= 0 AND draft >= 0", name="draft"),
        CheckConstraint(
            "(status IN ('COMPLETE', 'INCOMPLETE')) = (finished_at IS NOT NULL)", name="finished"
        ),
        CheckConstraint("role = 'assistant' OR status = 'COMPLETE'", name="only_answers_take_time"),
        Index(
            "uq_messages_one_open",
            "conversation_id",
            unique=True,
            postgresql_where=text("status IN ('PENDING', 'ANSWERING')"),
        ),
        Index("ix_messages_author_created", "author", "created_at"),
    )

    id: Mapped[Id]
    conversation_id: Mapped[UUID] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    sequence: Mapped[int]
    role: Mapped[MessageRole] = mapped_column(enum_column(MessageRole, "message_role"))
    status: Mapped[MessageStatus] = mapped_column(enum_column(MessageStatus, "message_status"))
    status_since: Mapped[Created]
    author: Mapped[str]
    author_id: Mapped[UUID]
    content: Mapped[str] = mapped_column(server_default=text("''"))
    run: Mapped[int] = mapped_column(server_default=text("0"))
    draft: Mapped[int] = mapped_column(server_default=text("0"))
    steps: Mapped[list[Json]] = mapped_column(
        server_default=text("'[]'"), deferred=True, deferred_raiseload=True
    )
    tool_calls: Mapped[list[Json]] = mapped_column(server_default=text("'[]'"))
    citations: Mapped[list[Json]] = mapped_column(server_default=text("'[]'"))
    unverified: Mapped[list[Json]] = mapped_column(server_default=text("'[]'"))
    stop_reason: Mapped[str | None]
    model: Mapped[str | None]
    error: Mapped[Json | None]
    operation_id: Mapped[UUID | None]
    began_at: Mapped[Instant | None]
    created_at: Mapped[Created]
    finished_at: Mapped[Instant | None]
