"""Lets SQLite use the index of predictions with data: its condition must be written as in the queries."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# Queries have `IS 0`. For SQLite, `IS false` is another condition.
HAS_DATA = sa.text("ended_us IS NOT NULL AND data_removed IS 0")


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        op.drop_index("predictions_with_data", "predictions")
        op.create_index("predictions_with_data", "predictions", ["ended_us", "output_bytes"], sqlite_where=HAS_DATA)
