# SPDX-License-Identifier: Apache-2.0
"""each event carries the hash of all before it

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

CHAIN = """
CREATE FUNCTION chain_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE previous bytea := decode(repeat('00', 32), 'hex');
BEGIN
    IF NEW.sequence > 1 THEN
        SELECT hash INTO previous FROM events
        WHERE deployment_id = NEW.deployment_id AND sequence = NEW.sequence - 1;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'event % of deployment % has none before it', NEW.sequence, NEW.deployment_id
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_events_chain';
        END IF;
    END IF;
    NEW.hash := sha256(previous || convert_to(jsonb_build_array(
        NEW.deployment_id, NEW.sequence, NEW.type, NEW.actor,
        to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        NEW.before, NEW.after, NEW.correlation_id)::text, 'UTF8'));
    RETURN NEW;
END $$
"""
CHAIN_TRIGGER = """
CREATE TRIGGER events_chain BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION chain_event()
"""


def upgrade() -> None:
    op.add_column("events", sa.Column("hash", sa.LargeBinary(), nullable=True))
    op.execute(CHAIN)
    op.execute(CHAIN_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER events_chain ON events")
    op.execute("DROP FUNCTION chain_event")
    op.drop_column("events", "hash")
