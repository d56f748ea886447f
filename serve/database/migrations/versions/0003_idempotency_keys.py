"""Adds the idempotency keys of predictions."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("idempotency_key", sa.String(255)))
    op.add_column("predictions", sa.Column("request_hash", sa.String(64)))
    op.create_index("predictions_idempotency_key", "predictions", ["idempotency_key"], unique=True)
