"""The SQL statements on the table of previews. Each function runs in the caller's transaction."""

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection, delete, select

from serve.database.tables import previews
from serve.database.upsert import insert_into


class StoredPreview(NamedTuple):
    """The newest preview of an image."""

    step: int
    content: bytes
    """A webp file."""


def write_previews(connection: Connection, prediction_id: str, changes: Mapping[int, StoredPreview | None]) -> None:
    """Replaces the previews of images, or deletes those that are None."""
    for image, preview in changes.items():
        if preview is None:
            is_its = (previews.c.prediction_id == prediction_id) & (previews.c.image == image)
            connection.execute(delete(previews).where(is_its))
            continue
        values = preview._asdict()
        statement = insert_into(connection, previews).values(prediction_id=prediction_id, image=image, **values)
        connection.execute(
            statement.on_conflict_do_update(index_elements=[previews.c.prediction_id, previews.c.image], set_=values)
        )


def read_previews(connection: Connection, prediction_id: str) -> dict[int, StoredPreview]:
    """By image."""
    query = select(previews).where(previews.c.prediction_id == prediction_id)
    return {row.image: StoredPreview(row.step, row.content) for row in connection.execute(query)}


def delete_previews(connection: Connection, prediction_id: str) -> None:
    connection.execute(delete(previews).where(previews.c.prediction_id == prediction_id))
