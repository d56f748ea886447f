"""Creates the tables of tokens, and gives predictions and files an owner."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

ACTIVE = sa.text("ended_us IS NULL OR lease_owner IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("max_in_flight", sa.Integer),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("revoked_us", sa.BigInteger),
    )
    op.create_table(
        "request_counts",
        sa.Column("token_id", sa.String(16), primary_key=True),
        sa.Column("minute", sa.BigInteger, primary_key=True),
        sa.Column("requests", sa.Integer, nullable=False),
    )
    op.add_column("predictions", sa.Column("owner", sa.String(16), nullable=False, server_default=""))
    op.add_column("files", sa.Column("owner", sa.String(16), nullable=False, server_default=""))
    op.drop_index("predictions_idempotency_key", "predictions")
    op.create_index("predictions_idempotency_key", "predictions", ["owner", "idempotency_key"], unique=True)
    op.create_index("predictions_by_owner", "predictions", ["owner", sa.text("created_us DESC"), sa.text("id DESC")])
    op.create_index(
        "predictions_active_by_owner", "predictions", ["owner"], sqlite_where=ACTIVE, postgresql_where=ACTIVE
    )
