"""Reads the multipart body of an image edit."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from serve.api.http_messages import InvalidBody
from serve.api.multipart import receive_form
from serve.errors import FieldError
from serve.inputs import shorten_name

MAX_FILES = 20
"""OpenAI's API takes 16 images. With more of them, the body is refused before it is complete."""
MAX_FIELDS = 100

_IMAGE = re.compile(r"image(\[\d*\])?")


class EditForm(NamedTuple):
    fields: dict[str, str]
    """The parts that are not files, by name."""
    image: bytes
    mask: bytes | None


async def read_edit_form(request: Request, max_bytes: int, timeout_s: float) -> EditForm:
    """Reads the body. Raises `InvalidBody`, and the errors of `receive_form`."""
    async with receive_form(request, max_bytes, timeout_s, _ignore, MAX_FILES, MAX_FIELDS) as form:
        errors = [*_field_errors(form), *_image_errors(form)]
        if errors:
            raise InvalidBody(tuple(errors))
        image, mask = _files(form, "image")[0], _files(form, "mask")
        fields = {name: part for name, part in form.multi_items() if isinstance(part, str)}
        return EditForm(fields, await image.read(), await mask[0].read() if mask else None)


async def _ignore(size_bytes: int) -> None:
    """Nothing is counted: the body is in memory, or in a temporary file, until the block ends."""


def _files(form: FormData, field: str) -> list[UploadFile]:
    return [part for name, part in form.multi_items() if isinstance(part, UploadFile) and _field(name) == field]


def _field(name: str) -> str:
    """`image` for the names that clients give to one image, or to each of several."""
    return "image" if _IMAGE.fullmatch(name) else name


def _image_errors(form: FormData) -> Iterable[FieldError]:
    images = [part for name, part in form.multi_items() if _field(name) == "image"]
    if not images:
        yield FieldError("image", "Field required", "missing")
    elif len(images) > 1:
        yield FieldError("image", f"there are {len(images)} images; this model takes one")
    elif not isinstance(images[0], UploadFile):
        yield FieldError("image", "must be a file: give its part a filename", "file_type")


def _field_errors(form: FormData) -> Iterable[FieldError]:
    parts = [(name, part) for name, part in form.multi_items() if _field(name) != "image"]
    names = [name for name, _ in parts]
    for name, part in dict(parts).items():
        if names.count(name) > 1:
            yield FieldError(shorten_name(name), "is given more than once")
        elif name == "mask" and not isinstance(part, UploadFile):
            yield FieldError(name, "must be a file: give its part a filename", "file_type")
        elif name != "mask" and isinstance(part, UploadFile):
            yield FieldError(shorten_name(name), "is not a file of this API; remove it", "unsupported")
