"""Creates the tables of webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

OPEN = sa.text("dead_us IS NULL")


def upgrade() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("prediction_id", sa.String(64), primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("dead_us", sa.BigInteger),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_number", sa.Integer, nullable=False),
        sa.Column("lease_expires_us", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "webhook_deliveries_open", "webhook_deliveries", ["due_us"], sqlite_where=OPEN, postgresql_where=OPEN
    )
    op.create_index("webhook_deliveries_dead", "webhook_deliveries", ["dead_us"])
    op.create_table(
        "webhook_secrets",
        sa.Column("owner", sa.String(16), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("secret", sa.String(100), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger),
    )
