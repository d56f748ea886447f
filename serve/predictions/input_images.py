"""Loads the input images of predictions as arrays of the planned size.

`data:` URIs are decoded before a prediction is accepted, URLs are fetched afterwards.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from serve import tracing
from serve.aio import first_error_task_group
from serve.errors import FetchFailed, FieldError, InvalidImage, InvalidInput
from serve.generation_plan import GenerationPlan
from serve.inputs import Inputs
from serve.media.data_uri import decode_data_uri, is_data_uri
from serve.media.image_codec import decode_image, resize_image
from serve.media.masks import decode_mask, resize_mask
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
    notes: tuple[str, ...] = ()
    """Log lines for the caller: how the mask was read."""


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
        with tracing.span("decode_inputs"):
            async with self._decoders:
                return await asyncio.to_thread(self._load, inputs.image, inputs.mask, plan)

    async def fetch(self, images: LoadedImages | UnfetchedImages) -> LoadedImages:
        """Fetches and decodes what is pending. Raises `FetchFailed`, and `InvalidInput` as `load` does."""
        if isinstance(images, LoadedImages):
            return images
        with tracing.span("fetch"):
            image, mask = await self._fetch_both(images)
            async with self._decoders:
                return await asyncio.to_thread(self._decode, images.plan, image, mask)

    async def _fetch_both(self, images: UnfetchedImages) -> tuple[bytes, bytes | None]:
        async with first_error_task_group() as group:
            image = group.create_task(self._content("image", images.image))
            mask = None if images.mask is None else group.create_task(self._content("mask", images.mask))
        return image.result(), None if mask is None else mask.result()

    async def _content(self, field: str, source: str | bytes) -> bytes:
        if isinstance(source, bytes):
            return source
        try:
            return await self._fetcher.fetch(source)
        except FetchFailed as error:
            raise FetchFailed(error.what, error.why, field) from error

    def _load(self, image: str, mask: str | None, plan: GenerationPlan) -> LoadedImages | UnfetchedImages:
        errors: list[FieldError] = []
        contents = {
            field: _collect_error(errors, decode_data_uri, uri, field, self._max_bytes)
            for field, uri in (("image", image), ("mask", mask))
            if uri is not None and is_data_uri(uri)
        }
        loaded = self._decode(plan, contents.get("image"), contents.get("mask"), errors)
        if is_data_uri(image) and (mask is None or is_data_uri(mask)):
            return loaded
        # Without errors, which `_decode` raises, every `data:` URI has a content.
        image_content, mask_content = contents.get("image"), contents.get("mask")
        return UnfetchedImages(
            loaded.plan,
            image if image_content is None else image_content,
            mask if mask_content is None else mask_content,
        )

    def _decode(
        self, plan: GenerationPlan, image: bytes | None, mask: bytes | None, errors: list[FieldError] | None = None
    ) -> LoadedImages:
        """Decodes and resizes what is given. `errors` are earlier ones, to be raised together with new ones."""
        errors = errors or []
        limit = self._max_megapixels
        decoded = None if image is None else _collect_error(errors, decode_image, image, "image", limit)
        if decoded is not None:
            try:
                plan = plan.with_image_size(decoded.size)
            except InvalidInput as error:
                errors += error.field_errors
        decoded_mask = None if mask is None else _collect_error(errors, decode_mask, mask, "mask", limit)
        resized_mask = None
        if decoded is not None and plan.size is not None and decoded_mask is not None:
            resized_mask = _collect_error(errors, resize_mask, decoded_mask.image, decoded.size, plan.size, "mask")
        if errors:
            raise InvalidInput(tuple(errors))
        if decoded is None or plan.size is None:
            return LoadedImages(plan)
        notes = () if decoded_mask is None else decoded_mask.notes
        return LoadedImages(plan, resize_image(decoded, plan.size), resized_mask, notes)


def _collect_error(errors: list[FieldError], call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The result of `call`, or None after its `InvalidImage` was added to `errors`."""
    try:
        return call(*args, **kwargs)
    except InvalidImage as error:
        errors.append(FieldError(error.field, error.why))
        return None
