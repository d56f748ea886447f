"""Stores generated images, and makes the URIs with which clients read them.

The file of an image is `outputs/{prediction id}/{lease number}/out-{index}.{webp,jpg,png}`. A process that has lost the
lease of a prediction thus cannot replace the images of the process that has it.
"""

import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from serve.errors import NotFound
from serve.media.image_codec import MEDIA_TYPES
from serve.media.links import PREFIX, LinkSigner
from serve.media.object_store import ObjectStore
from serve.model_specs import ImageFormat
from serve.settings import OutputSettings

PREDICTION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
NAME = re.compile(rf"[0-9]{{1,9}}/out-(?:0|[1-9][0-9]{{0,2}})\.(?:{'|'.join(MEDIA_TYPES)})")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class OutputStore:
    """The name of an output is its key below that of its prediction: `1/out-0.webp`."""

    def __init__(
        self,
        settings: OutputSettings,
        store: ObjectStore,
        links: LinkSigner,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._settings = settings
        self._max_age = timedelta(seconds=settings.max_age_s)
        self._store = store
        self._links = links
        self._clock = clock

    async def save(
        self, prediction_id: str, lease_number: int, index: int, content: bytes, file_format: ImageFormat
    ) -> str:
        """Stores image `index` of a prediction and returns its name.

        Raises `StorageFailed` if it cannot be written, and `ValueError` if the id or the index is invalid.
        """
        name = f"{lease_number}/out-{index}.{file_format}"
        if not PREDICTION_ID.fullmatch(prediction_id) or not NAME.fullmatch(name):
            raise ValueError(f"invalid prediction id {prediction_id!r} or name {name!r}")
        await self._store.put(_key(prediction_id, name), content, media_type(name), file_name(name))
        return name

    async def read(self, prediction_id: str, name: str) -> tuple[bytes, str]:
        """Returns the content of an output and its media type. Raises `NotFound`, also for invalid ids and names."""
        try:
            return await self._store.read(self.key(prediction_id, name)), media_type(name)
        except FileNotFoundError:
            raise self.not_found() from None

    async def uri(self, prediction_id: str, name: str) -> str:
        """Returns an output as `settings.delivery` says: as a `data:` URI, or as a URL that anyone can read for a time.

        Raises `NotFound` if it can tell without a request to the store.
        """
        key = self.key(prediction_id, name)
        if self._settings.uses_data_uris:
            content, kind = await self.read(prediction_id, name)
            return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
        presigned = await self.presigned_url(key)
        return presigned or f"{self._settings.base_url}{PREFIX}{await self._links.ticket(key)}/{key}"

    async def presigned_url(self, key: str) -> str | None:
        """The URL of an output in a bucket; None for a local folder."""
        return await self._store.presigned_url(key, self._settings.link_max_age_s)

    def key(self, prediction_id: str, name: str) -> str:
        """The key of an output. Raises `NotFound` for invalid ids and names."""
        if not PREDICTION_ID.fullmatch(prediction_id) or not NAME.fullmatch(name):
            raise self.not_found()
        return _key(prediction_id, name)

    def is_kept(self, ended_at: datetime | None) -> bool:
        """Whether the outputs of a prediction that ended at this time are not too old."""
        return ended_at is None or self._clock() - ended_at < self._max_age

    async def delete(self, prediction_id: str) -> None:
        """Deletes all outputs of a prediction, of all leases. Raises `StorageUnavailable`."""
        assert PREDICTION_ID.fullmatch(prediction_id)
        await self._store.delete_folder(f"outputs/{prediction_id}")

    def not_found(self) -> NotFound:
        return NotFound(f"there is no such output; outputs are kept for at most {self._settings.max_age_s:g} s")


def media_type(name: str) -> str:
    return MEDIA_TYPES[name.rpartition(".")[2]]


def file_name(name: str) -> str:
    """The name without the lease number."""
    return name.rpartition("/")[2]


def _key(prediction_id: str, name: str) -> str:
    return f"outputs/{prediction_id}/{name}"
