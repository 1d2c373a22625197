# SPDX-License-Identifier: Apache-2.0
"""events from before the chain get their place in it

Revision ID: 0005
Revises: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# In order within each deployment; nobody adds an event meanwhile, and from then on each finds its predecessor.
LINK = """
DO $$
DECLARE link record; previous bytea;
BEGIN
    LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE;
    FOR link IN SELECT * FROM events ORDER BY deployment_id, sequence LOOP
        IF link.sequence = 1 THEN previous := decode(repeat('00', 32), 'hex'); END IF;
        previous := sha256(previous || convert_to(jsonb_build_array(
            link.deployment_id, link.sequence, link.type, link.actor,
            to_char(link.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            link.before, link.after, link.correlation_id)::text, 'UTF8'));
        UPDATE events SET hash = previous
        WHERE deployment_id = link.deployment_id AND sequence = link.sequence;
    END LOOP;
END $$
"""


def upgrade() -> None:
    op.execute(LINK)


def downgrade() -> None:
    """The column goes with the revision before."""
