"""Creates the table of previews."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "previews",
        sa.Column("prediction_id", sa.String(64), primary_key=True),
        sa.Column("image", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
