"""The tables of the database.

Columns with names that end with `_us` have times as `times` encodes them.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    and_,
    or_,
)

metadata = MetaData()

predictions = Table(
    "predictions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_us", BigInteger, nullable=False),
    # When a replica began to generate the prediction.
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger),
    # The id of the token that created the prediction; empty if it was created without one.
    Column("owner", String(16), nullable=False, server_default=""),
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

Index("predictions_idempotency_key", predictions.c.owner, predictions.c.idempotency_key, unique=True)
Index("predictions_newest", predictions.c.created_us.desc(), predictions.c.id.desc())
Index("predictions_active", predictions.c.pool, sqlite_where=is_active, postgresql_where=is_active)
Index("predictions_by_owner", predictions.c.owner, predictions.c.created_us.desc(), predictions.c.id.desc())
Index("predictions_active_by_owner", predictions.c.owner, sqlite_where=is_active, postgresql_where=is_active)
Index("predictions_ended", predictions.c.ended_us)
Index("predictions_by_pool", predictions.c.pool, predictions.c.status, predictions.c.ended_us)
Index(
    "predictions_with_data",
    predictions.c.ended_us,
    predictions.c.output_bytes,
    sqlite_where=has_data,
    postgresql_where=has_data,
)

previews = Table(
    "previews",
    metadata,
    # A row exists while the prediction runs and the image is not finished: the newest preview of the image.
    Column("prediction_id", String(64), primary_key=True),
    Column("image", Integer, primary_key=True, autoincrement=False),
    Column("step", Integer, nullable=False),
    # A small webp file.
    Column("content", LargeBinary, nullable=False),
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    # The id of the token that uploaded the file; empty if it was uploaded without one.
    Column("owner", String(16), nullable=False, server_default=""),
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

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    # A row exists from the creation of a prediction with a webhook until its last event is delivered.
    Column("prediction_id", String(64), primary_key=True),
    # Host and port of the webhook.
    Column("host", Text, nullable=False),
    # When the next attempt is due.
    Column("due_us", BigInteger, nullable=False),
    # Of the last event.
    Column("attempts", Integer, nullable=False),
    # Why the last attempt failed.
    Column("error", Text),
    # When the last attempt failed after which there are no more, until an operator asks for them.
    Column("dead_us", BigInteger),
    # The process that delivers the events; see `predictions`.
    Column("lease_owner", String(64)),
    Column("lease_number", Integer, nullable=False),
    Column("lease_expires_us", BigInteger, nullable=False),
)

is_open = webhook_deliveries.c.dead_us.is_(None)
"""Whether there are more attempts."""

Index("webhook_deliveries_open", webhook_deliveries.c.due_us, sqlite_where=is_open, postgresql_where=is_open)
Index("webhook_deliveries_dead", webhook_deliveries.c.dead_us)

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    # As of `predictions`: a secret signs the webhooks of its owner's predictions.
    Column("owner", String(16), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("secret", String(100), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    # When a replaced secret stops to sign; None for the newest one.
    Column("expires_us", BigInteger),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    # SHA-256 of the secret.
    Column("digest", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("requests_per_minute", Integer),
    Column("max_in_flight", Integer),
    Column("created_us", BigInteger, nullable=False),
    Column("revoked_us", BigInteger),
)

request_counts = Table(
    "request_counts",
    metadata,
    Column("token_id", String(16), primary_key=True),
    # Minutes since 1970.
    Column("minute", BigInteger, primary_key=True),
    Column("requests", Integer, nullable=False),
)
