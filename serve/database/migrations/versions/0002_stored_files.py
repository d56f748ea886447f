"""Creates the tables of uploaded files, signing keys and task leases, and adds the sizes of outputs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

HAS_DATA = sa.text("ended_us IS NOT NULL AND data_removed IS false")


def upgrade() -> None:
    op.add_column("predictions", sa.Column("output_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.drop_index("predictions_with_data", "predictions")
    op.create_index(
        "predictions_with_data",
        "predictions",
        ["ended_us", "output_bytes"],
        sqlite_where=HAS_DATA,
        postgresql_where=HAS_DATA,
    )
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("content_type", sa.String(255)),
        sa.Column("metadata", sa.Text),
        sa.Column("sha256", sa.String(64)),
    )
    op.create_index("files_newest", "files", ["state", "created_us", "id"])
    op.create_table(
        "signing_keys",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(128), nullable=False),
    )
    op.create_table(
        "task_leases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
    )
