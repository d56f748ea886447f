"""Loads the input images of predictions as arrays of the planned size.

`data:` URIs are decoded before a prediction is accepted, URLs are fetched afterwards.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from serve.aio import first_error_task_group
from serve.errors import FieldError, InvalidImage, InvalidInput
from serve.inputs import Inputs
from serve.media.data_uri import decode_data_uri, is_data_uri
from serve.media.decode import ImageArray, decode_image, decode_mask, resize_image, resize_mask
from serve.plan import Plan
from serve.settings import Settings

DECODED_AT_ONCE = 2
"""A picture of 50 megapixels takes 150 MB while it is decoded."""

P = ParamSpec("P")
Read = TypeVar("Read")


class Fetcher(Protocol):
    async def fetch(self, text: str) -> bytes:
        """The content of a URL. Raises `FetchFailed`."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImages:
    """A complete plan, and what it is drawn from: [height, width, 3] and [height, width]."""

    plan: Plan
    image: ImageArray | None = None
    mask: ImageArray | None = None


@dataclass(frozen=True, slots=True)
class PendingImages:
    """A plan with at least one picture that is still to be fetched: a `str` is its URL, `bytes` are the file."""

    plan: Plan
    image: str | bytes
    mask: str | bytes | None


class InputImages:
    def __init__(self, settings: Settings, fetcher: Fetcher) -> None:
        self._max_bytes = settings.max_body_bytes
        self._max_megapixels = settings.max_image_megapixels
        self._fetcher = fetcher
        self._decoders = asyncio.Semaphore(DECODED_AT_ONCE)

    async def open(self, inputs: Inputs, plan: Plan) -> LoadedImages | PendingImages:
        """Reads what the inputs hold themselves; nothing is fetched. Raises `InvalidInput` with all its faults."""
        if inputs.image is None:
            return LoadedImages(plan)
        async with self._decoders:
            return await asyncio.to_thread(self._open, inputs.image, inputs.mask, plan)

    async def fetch_pending(self, pictures: LoadedImages | PendingImages) -> LoadedImages:
        """Fetches what is still awaited. Raises `FetchFailed`, and `InvalidInput` as `open` does."""
        if isinstance(pictures, LoadedImages):
            return pictures
        image, mask = await self._fetch_both(pictures)
        async with self._decoders:
            return await asyncio.to_thread(self._prepare, pictures.plan, image, mask)

    async def _fetch_both(self, pictures: PendingImages) -> tuple[bytes, bytes | None]:
        async with first_error_task_group() as fetching:
            image = fetching.create_task(self._content(pictures.image))
            mask = fetching.create_task(self._content(pictures.mask)) if pictures.mask else None
        return image.result(), mask.result() if mask else None

    async def _content(self, source: str | bytes) -> bytes:
        return await self._fetcher.fetch(source) if isinstance(source, str) else source

    def _open(self, image: str, mask: str | None, plan: Plan) -> LoadedImages | PendingImages:
        faults: list[FieldError] = []
        contents = {
            field: _attempt(faults, decode_data_uri, uri, field, self._max_bytes)
            for field, uri in (("image", image), ("mask", mask))
            if uri and is_data_uri(uri)
        }
        prepared = self._prepare(plan, contents.get("image"), contents.get("mask"), faults)
        if is_data_uri(image) and (mask is None or is_data_uri(mask)):
            return prepared
        return PendingImages(prepared.plan, contents.get("image") or image, contents.get("mask") or mask)

    def _prepare(
        self, plan: Plan, image: bytes | None, mask: bytes | None, faults: list[FieldError] | None = None
    ) -> LoadedImages:
        """What is there is decoded and fitted. `faults` are those that were found before."""
        faults = faults or []
        picture = _attempt(faults, decode_image, image, "image", self._max_megapixels) if image else None
        if picture is not None:
            try:
                plan = plan.with_image_size(picture.size)
            except InvalidInput as refusal:
                faults += refusal.field_errors
        painted = _attempt(faults, decode_mask, mask, "mask", self._max_megapixels) if mask else None
        if faults:
            raise InvalidInput(tuple(faults))
        if picture is None or plan.size is None:
            return LoadedImages(plan)
        fitted_mask = None if painted is None else resize_mask(painted, picture.size, plan.size)
        return LoadedImages(plan, resize_image(picture, plan.size), fitted_mask)


def _attempt(faults: list[FieldError], read: Callable[P, Read], *given: P.args, **named: P.kwargs) -> Read | None:
    """What `read` makes of an input, or None after its refusal was added to `faults`."""
    try:
        return read(*given, **named)
    except InvalidImage as refusal:
        faults.append(FieldError(refusal.field, refusal.why))
        return None
