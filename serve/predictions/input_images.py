"""Loads the input images of predictions as arrays of the planned size.

`data:` URIs are decoded before a prediction is accepted, URLs are fetched afterwards.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from serve.aio import together
from serve.errors import Fault, InvalidInput, PictureRefused
from serve.inputs import Inputs
from serve.media.data_uri import is_data_uri, read_data_uri
from serve.media.decode import Pixels, decode, decode_mask, fit, fit_mask
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
class Prepared:
    """A complete plan, and what it is drawn from: [height, width, 3] and [height, width]."""

    plan: Plan
    picture: Pixels | None = None
    mask: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Awaited:
    """A plan with at least one picture that is still to be fetched: a `str` is its URL, `bytes` are the file."""

    plan: Plan
    image: str | bytes
    mask: str | bytes | None


class Pictures:
    def __init__(self, settings: Settings, fetcher: Fetcher) -> None:
        self._max_bytes = settings.max_body_bytes
        self._max_megapixels = settings.max_picture_megapixels
        self._fetcher = fetcher
        self._decoders = asyncio.Semaphore(DECODED_AT_ONCE)

    async def open(self, inputs: Inputs, plan: Plan) -> Prepared | Awaited:
        """Reads what the inputs hold themselves; nothing is fetched. Raises `InvalidInput` with all its faults."""
        if inputs.image is None:
            return Prepared(plan)
        async with self._decoders:
            return await asyncio.to_thread(self._open, inputs.image, inputs.mask, plan)

    async def prepare(self, pictures: Prepared | Awaited) -> Prepared:
        """Fetches what is still awaited. Raises `FetchFailed`, and `InvalidInput` as `open` does."""
        if isinstance(pictures, Prepared):
            return pictures
        image, mask = await self._fetch_both(pictures)
        async with self._decoders:
            return await asyncio.to_thread(self._prepare, pictures.plan, image, mask)

    async def _fetch_both(self, pictures: Awaited) -> tuple[bytes, bytes | None]:
        async with together() as fetching:
            image = fetching.create_task(self._content(pictures.image))
            mask = fetching.create_task(self._content(pictures.mask)) if pictures.mask else None
        return image.result(), mask.result() if mask else None

    async def _content(self, source: str | bytes) -> bytes:
        return await self._fetcher.fetch(source) if isinstance(source, str) else source

    def _open(self, image: str, mask: str | None, plan: Plan) -> Prepared | Awaited:
        faults: list[Fault] = []
        contents = {
            field: _attempt(faults, read_data_uri, uri, field, self._max_bytes)
            for field, uri in (("image", image), ("mask", mask))
            if uri and is_data_uri(uri)
        }
        prepared = self._prepare(plan, contents.get("image"), contents.get("mask"), faults)
        if is_data_uri(image) and (mask is None or is_data_uri(mask)):
            return prepared
        return Awaited(prepared.plan, contents.get("image") or image, contents.get("mask") or mask)

    def _prepare(
        self, plan: Plan, image: bytes | None, mask: bytes | None, faults: list[Fault] | None = None
    ) -> Prepared:
        """What is there is decoded and fitted. `faults` are those that were found before."""
        faults = faults or []
        picture = _attempt(faults, decode, image, "image", self._max_megapixels) if image else None
        if picture is not None:
            try:
                plan = plan.with_picture(picture.size)
            except InvalidInput as refusal:
                faults += refusal.faults
        painted = _attempt(faults, decode_mask, mask, "mask", self._max_megapixels) if mask else None
        if faults:
            raise InvalidInput(tuple(faults))
        if picture is None or plan.size is None:
            return Prepared(plan)
        fitted_mask = None if painted is None else fit_mask(painted, picture.size, plan.size)
        return Prepared(plan, fit(picture, plan.size), fitted_mask)


def _attempt(faults: list[Fault], read: Callable[P, Read], *given: P.args, **named: P.kwargs) -> Read | None:
    """What `read` makes of an input, or None after its refusal was added to `faults`."""
    try:
        return read(*given, **named)
    except PictureRefused as refusal:
        faults.append(Fault(refusal.field, refusal.why))
        return None
