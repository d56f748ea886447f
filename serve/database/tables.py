"""The tables of the database.

Times are microseconds since 1970, which SQLite and PostgreSQL store, compare and index alike.
"""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, and_, or_

metadata = MetaData()

predictions = Table(
    "predictions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Column("pool", String(100), nullable=False),
    Column("status", String(16), nullable=False),
    Column("work", Float, nullable=False),
    # Whether the prediction is cancelled when the process that accepted it is lost, because its caller is gone too.
    Column("attached", Boolean, nullable=False),
    Column("data_removed", Boolean, nullable=False),
    # Increases with every change of `record`.
    Column("revision", Integer, nullable=False),
    # The process that runs the prediction. None once the work has stopped, or if any process may take it up.
    Column("lease_owner", String(64)),
    # Increases each time that another process takes the prediction up. Writes with an older number are rejected.
    Column("lease_number", Integer, nullable=False),
    Column("lease_expires_us", BigInteger, nullable=False),
    # How many processes or replicas were lost while they generated this prediction.
    Column("losses", Integer, nullable=False),
    # Of the request that created the prediction, if it had one, with the hash of its body.
    Column("idempotency_key", String(255)),
    Column("request_hash", String(64)),
    # `Prediction` as JSON.
    Column("record", Text, nullable=False),
    # The total size of the stored outputs.
    Column("output_bytes", BigInteger, nullable=False, server_default="0"),
)

is_active = or_(predictions.c.ended_us.is_(None), predictions.c.lease_owner.is_not(None))
"""Whether a prediction takes a place in its pool: it has not ended, or its work has not stopped yet."""

has_data = and_(predictions.c.ended_us.is_not(None), predictions.c.data_removed.is_(False))

Index("predictions_idempotency_key", predictions.c.idempotency_key, unique=True)
Index("predictions_newest", predictions.c.created_us.desc(), predictions.c.id.desc())
Index("predictions_active", predictions.c.pool, sqlite_where=is_active, postgresql_where=is_active)
Index("predictions_ended", predictions.c.ended_us)
Index("predictions_by_pool", predictions.c.pool, predictions.c.status, predictions.c.ended_us)
Index(
    "predictions_with_data",
    predictions.c.ended_us,
    predictions.c.output_bytes,
    sqlite_where=has_data,
    postgresql_where=has_data,
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    # `uploading`, `stored`, or `removed` while its content is being deleted.
    Column("state", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    # Of an upload: when its process is taken for lost.
    Column("expires_us", BigInteger, nullable=False),
    # Null until the file is stored.
    Column("name", String(255)),
    Column("content_type", String(255)),
    # An object as JSON.
    Column("metadata", Text),
    Column("sha256", String(64)),
)

Index("files_newest", files.c.state, files.c.created_us, files.c.id)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("name", String(64), primary_key=True),
    # Hexadecimal.
    Column("key", String(128), nullable=False),
)

task_leases = Table(
    "task_leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("expires_us", BigInteger, nullable=False),
)
