"""Creates the table of predictions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ACTIVE = sa.text("ended_us IS NULL OR lease_owner IS NOT NULL")
HAS_DATA = sa.text("ended_us IS NOT NULL AND data_removed IS false")


def upgrade() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("ended_us", sa.BigInteger),
        sa.Column("pool", sa.String(100), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("work", sa.Float, nullable=False),
        sa.Column("attached", sa.Boolean, nullable=False),
        sa.Column("data_removed", sa.Boolean, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_number", sa.Integer, nullable=False),
        sa.Column("lease_expires_us", sa.BigInteger, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("predictions_newest", "predictions", [sa.text("created_us DESC"), sa.text("id DESC")])
    op.create_index("predictions_active", "predictions", ["pool"], sqlite_where=ACTIVE, postgresql_where=ACTIVE)
    op.create_index("predictions_ended", "predictions", ["ended_us"])
    op.create_index("predictions_by_pool", "predictions", ["pool", "status", "ended_us"])
    op.create_index(
        "predictions_with_data", "predictions", ["ended_us"], sqlite_where=HAS_DATA, postgresql_where=HAS_DATA
    )
