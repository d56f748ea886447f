"""Loads the input images of predictions as arrays of the planned size.

`data:` URIs are decoded before a prediction is accepted, URLs are fetched afterwards.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from serve.aio import first_error_task_group
from serve.errors import FieldError, InvalidImage, InvalidInput
from serve.generation_plan import GenerationPlan
from serve.inputs import Inputs
from serve.media.data_uri import decode_data_uri, is_data_uri
from serve.media.image_codec import decode_image, decode_mask, resize_image, resize_mask
from serve.model_specs import ImageArray, MaskArray
from serve.settings import Settings

CONCURRENT_DECODES = 2
"""An image of 50 megapixels takes 150 MB while it is decoded."""

P = ParamSpec("P")
T = TypeVar("T")


class Fetcher(Protocol):
    async def fetch(self, url: str) -> bytes:
        """The content of a URL. Raises `FetchFailed`."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImages:
    """A plan and its decoded input images, if it has any."""

    plan: GenerationPlan
    image: ImageArray | None = None
    """[height, width, 3], of the plan's size."""
    mask: MaskArray | None = None
    """[height, width], of the plan's size."""


@dataclass(frozen=True, slots=True)
class UnfetchedImages:
    """A plan with at least one image to be fetched: `str` is a URL, `bytes` are the content of a file."""

    plan: GenerationPlan
    image: str | bytes
    mask: str | bytes | None


class InputImages:
    """Decodes in threads, at most `CONCURRENT_DECODES` requests at a time."""

    def __init__(self, settings: Settings, fetcher: Fetcher) -> None:
        self._max_bytes = settings.max_body_bytes
        self._max_megapixels = settings.max_image_megapixels
        self._fetcher = fetcher
        self._decoders = asyncio.Semaphore(CONCURRENT_DECODES)

    async def load(self, inputs: Inputs, plan: GenerationPlan) -> LoadedImages | UnfetchedImages:
        """Decodes `data:` URIs; fetches nothing. Raises `InvalidInput` with all errors."""
        if inputs.image is None:
            return LoadedImages(plan)
        async with self._decoders:
            return await asyncio.to_thread(self._load, inputs.image, inputs.mask, plan)

    async def fetch(self, images: LoadedImages | UnfetchedImages) -> LoadedImages:
        """Fetches and decodes what is pending. Raises `FetchFailed`, and `InvalidInput` as `load` does."""
        if isinstance(images, LoadedImages):
            return images
        image, mask = await self._fetch_both(images)
        async with self._decoders:
            return await asyncio.to_thread(self._decode, images.plan, image, mask)

    async def _fetch_both(self, images: UnfetchedImages) -> tuple[bytes, bytes | None]:
        async with first_error_task_group() as group:
            image = group.create_task(self._content(images.image))
            mask = group.create_task(self._content(images.mask)) if images.mask else None
        return image.result(), mask.result() if mask else None

    async def _content(self, source: str | bytes) -> bytes:
        return await self._fetcher.fetch(source) if isinstance(source, str) else source

    def _load(self, image: str, mask: str | None, plan: GenerationPlan) -> LoadedImages | UnfetchedImages:
        errors: list[FieldError] = []
        contents = {
            field: _collect_error(errors, decode_data_uri, uri, field, self._max_bytes)
            for field, uri in (("image", image), ("mask", mask))
            if uri and is_data_uri(uri)
        }
        loaded = self._decode(plan, contents.get("image"), contents.get("mask"), errors)
        if is_data_uri(image) and (mask is None or is_data_uri(mask)):
            return loaded
        return UnfetchedImages(loaded.plan, contents.get("image") or image, contents.get("mask") or mask)

    def _decode(
        self, plan: GenerationPlan, image: bytes | None, mask: bytes | None, errors: list[FieldError] | None = None
    ) -> LoadedImages:
        """Decodes and resizes what is given. `errors` are earlier ones, to be raised together with new ones."""
        errors = errors or []
        decoded = _collect_error(errors, decode_image, image, "image", self._max_megapixels) if image else None
        if decoded is not None:
            try:
                plan = plan.with_image_size(decoded.size)
            except InvalidInput as error:
                errors += error.field_errors
        decoded_mask = _collect_error(errors, decode_mask, mask, "mask", self._max_megapixels) if mask else None
        if errors:
            raise InvalidInput(tuple(errors))
        if decoded is None or plan.size is None:
            return LoadedImages(plan)
        resized_mask = None if decoded_mask is None else resize_mask(decoded_mask, decoded.size, plan.size)
        return LoadedImages(plan, resize_image(decoded, plan.size), resized_mask)


def _collect_error(errors: list[FieldError], call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The result of `call`, or None after its `InvalidImage` was added to `errors`."""
    try:
        return call(*args, **kwargs)
    except InvalidImage as error:
        errors.append(FieldError(error.field, error.why))
        return None
