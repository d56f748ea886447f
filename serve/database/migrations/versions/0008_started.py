"""Adds the time at which predictions were started; that of earlier ones stays unknown."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("started_us", sa.BigInteger))
