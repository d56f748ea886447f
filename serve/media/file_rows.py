"""The SQL statements on the table of uploaded files. Each function runs in the caller's transaction."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, literal, or_, select, update

from serve.database.tables import files
from serve.errors import UploadsFull
from serve.settings import FileSettings

SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class FileDescription:
    """What the caller says about a file. It is never used as a path."""

    name: str
    content_type: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    description: FileDescription
    owner: str
    """The id of the token that uploaded it."""
    size_bytes: int
    sha256: str
    created_s: float
    """Seconds since 1970."""
    expires_s: float


def lock(connection: Connection) -> None:
    """Makes other changes of files wait for the end of the transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(literal("files")))))


def insert_upload(connection: Connection, file_id: str, size_bytes: int, now_s: float, end_s: float) -> None:
    """Stores an upload in progress, which is taken for lost at `end_s`."""
    values = {
        "id": file_id,
        "state": "uploading",
        "size_bytes": size_bytes,
        "created_us": _to_us(now_s),
        "expires_us": _to_us(end_s),
    }
    connection.execute(insert(files).values(values))


def update_upload(connection: Connection, file_id: str, size_bytes: int, end_s: float) -> bool:
    """Returns False if the upload was taken for lost."""
    values = {"size_bytes": size_bytes, "expires_us": _to_us(end_s)}
    return connection.execute(update(files).where(_is_uploading(file_id)).values(values)).rowcount == 1


def make_room(connection: Connection, settings: FileSettings, now_s: float) -> list[str]:
    """Marks the oldest files as removed until the rest and the uploads are within the limits. Returns their ids.

    Raises `UploadsFull` if the uploads alone are over a limit.
    """
    uploading = and_(files.c.state == "uploading", files.c.expires_us > _to_us(now_s))
    query = select(func.count(), func.coalesce(func.sum(files.c.size_bytes), 0)).where(uploading)
    count, size_bytes = connection.execute(query).one()
    if count > settings.max_files or size_bytes > settings.max_bytes:
        raise UploadsFull
    removed: list[str] = []
    newest_first = select(files.c.id, files.c.size_bytes).where(files.c.state == "stored")
    for row in connection.execute(newest_first.order_by(files.c.created_us.desc(), files.c.id.desc())):
        count += 1
        size_bytes += row.size_bytes
        # All files that are older than one without room are removed, too.
        if removed or count > settings.max_files or size_bytes > settings.max_bytes:
            removed.append(row.id)
    if removed:
        _mark_removed(connection, files.c.id.in_(removed))
    return removed


def write_stored(connection: Connection, file: StoredFile) -> bool:
    """Ends an upload. Returns False if it was taken for lost."""
    values = {
        "owner": file.owner,
        "state": "stored",
        "size_bytes": file.size_bytes,
        "created_us": _to_us(file.created_s),
        "expires_us": _to_us(file.expires_s),
        "name": file.description.name,
        "content_type": file.description.content_type,
        "metadata": json.dumps(dict(file.description.metadata)),
        "sha256": file.sha256,
    }
    return connection.execute(update(files).where(_is_uploading(file.id)).values(values)).rowcount == 1


def read_file(connection: Connection, file_id: str, now_s: float) -> StoredFile | None:
    """A file that has not expired."""
    row = connection.execute(select(files).where(_is_readable(now_s), files.c.id == file_id)).one_or_none()
    return None if row is None else _from_row(row)


def read_page(
    connection: Connection, older_than: StoredFile | None, limit: int, now_s: float, owner: str | None
) -> list[StoredFile]:
    """Up to `limit` files of `owner`, or of all, that have not expired, the newest first."""
    query = select(files).where(_is_readable(now_s))
    if owner is not None:
        query = query.where(files.c.owner == owner)
    if older_than is not None:
        created_us = _to_us(older_than.created_s)
        is_older = or_(
            files.c.created_us < created_us, and_(files.c.created_us == created_us, files.c.id < older_than.id)
        )
        query = query.where(is_older)
    rows = connection.execute(query.order_by(files.c.created_us.desc(), files.c.id.desc()).limit(limit))
    return [_from_row(row) for row in rows]


def mark_removed(connection: Connection, file_id: str) -> None:
    _mark_removed(connection, files.c.id == file_id)


def mark_expired(connection: Connection, now_s: float) -> None:
    """Marks files that are too old, and uploads of lost processes, as removed."""
    _mark_removed(connection, and_(files.c.state != "removed", files.c.expires_us <= _to_us(now_s)))


def removed_ids(connection: Connection, limit: int) -> Sequence[str]:
    query = select(files.c.id).where(files.c.state == "removed").limit(limit)
    return connection.execute(query).scalars().all()


def delete_rows(connection: Connection, file_ids: Sequence[str]) -> None:
    connection.execute(delete(files).where(files.c.id.in_(file_ids)))


def _mark_removed(connection: Connection, condition: ColumnElement[bool]) -> None:
    connection.execute(update(files).where(condition).values(state="removed"))


def _is_uploading(file_id: str) -> ColumnElement[bool]:
    return and_(files.c.id == file_id, files.c.state == "uploading")


def _is_readable(now_s: float) -> ColumnElement[bool]:
    return and_(files.c.state == "stored", files.c.expires_us > _to_us(now_s))


def _from_row(row: Row[Any]) -> StoredFile:
    description = FileDescription(row.name, row.content_type, json.loads(row.metadata))
    created_s, expires_s = row.created_us / SECOND_US, row.expires_us / SECOND_US
    return StoredFile(row.id, description, row.owner, row.size_bytes, row.sha256, created_s, expires_s)


def _to_us(time_s: float) -> int:
    return round(time_s * SECOND_US)
