"""The table of previews, in both databases."""

from serve.database.connection import Database
from serve.predictions.preview_rows import StoredPreview, delete_previews, read_previews, write_previews

A, B = "a" * 26, "b" * 26


async def read(database: Database, prediction_id: str) -> dict[int, StoredPreview]:
    return await database.read(lambda connection: read_previews(connection, prediction_id))


async def write(database: Database, prediction_id: str, **changes: StoredPreview | None) -> None:
    by_image = {int(name.removeprefix("image")): preview for name, preview in changes.items()}
    await database.write(lambda connection: write_previews(connection, prediction_id, by_image))


async def test_an_image_has_its_newest_preview_only(database: Database) -> None:
    first, second = StoredPreview(3, b"first"), StoredPreview(6, b"\x00second")
    await write(database, A, image0=first, image1=first)
    await write(database, B, image0=first)
    await write(database, A, image0=second)
    assert await read(database, A) == {0: second, 1: first}
    assert await read(database, B) == {0: first}


async def test_previews_are_removed_by_image_and_by_prediction(database: Database) -> None:
    preview = StoredPreview(3, b"content")
    for prediction_id in (A, B):
        await write(database, prediction_id, image0=preview, image1=preview)
    await write(database, A, image0=None)
    assert set(await read(database, A)) == {1}
    await database.write(lambda connection: delete_previews(connection, A))
    assert (await read(database, A), len(await read(database, B))) == ({}, 2)
