"""Recognizes URLs of this service's own files and outputs among the inputs, and reads them without HTTP.

A request to itself would need the service's token, and an exception from the SSRF guard.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from serve.access.caller import ANONYMOUS, Caller
from serve.database.patience import with_patience
from serve.errors import FetchFailed, FieldError, InvalidLink, NotFound
from serve.lora.parse_reference import MAX_CHARS, split_member, unquoted
from serve.lora.parse_site_url import UnrecognizedForm
from serve.lora.reference import ArchiveMember, Reference
from serve.lora.uploaded_file import UploadedFile
from serve.media.file_rows import StoredFile
from serve.media.file_store import FileStore, content_key
from serve.media.links import LinkSigner
from serve.media.output_store import OutputStore
from serve.predictions.input_images import Fetcher
from serve.predictions.store import PredictionStore

IMAGE_FIELDS = ("image", "mask")
LORA_FIELDS = ("replicate_weights", "extra_lora")
READ_PATIENCE_S = 60.0
"""How long an accepted prediction waits for the database."""

Result = TypeVar("Result")

_FILE = re.compile(r"(?P<base>.*?)(?:/links/(?P<ticket>[^/]+))?/v1/files/(?P<file_id>[^/]+?)(?:/download)?/?")
# In a bucket, the path of an output ends in the same way.
_OUTPUT = re.compile(
    r"(?P<base>.*?)(?:/links/(?P<ticket>[^/]+))?/outputs/(?P<prediction_id>[^/]+)/(?P<name>(?:[0-9]+/)?[^/]+)"
)


@dataclass(frozen=True, slots=True)
class UploadedInputs:
    """The inputs of one request that are URLs of uploaded files."""

    loras: Mapping[str, Reference]
    """By the text of the input."""
    errors: tuple[FieldError, ...] = ()
    """For files that were removed."""


NO_UPLOADS = UploadedInputs({})


class BucketUrls(Protocol):
    async def is_valid(self, url: str) -> bool:
        """Whether a URL of the bucket can be read. Raises `StorageUnavailable`."""


class OwnFiles:
    """Uploaded files and outputs by their URLs.

    A URL below `public_url` is this service's. Since callers may know the service by other names, any other URL with
    the id of a stored file or prediction is too: ids are long random numbers.
    """

    def __init__(
        self,
        files: FileStore,
        outputs: OutputStore,
        predictions: PredictionStore,
        links: LinkSigner,
        public_url: str,
        bucket: BucketUrls,
    ) -> None:
        self._files = files
        self._outputs = outputs
        self._predictions = predictions
        self._links = links
        self._bucket = bucket
        origin, path = _origin_and_path(public_url)
        self._base = origin, path.rstrip("/")

    async def find(self, inputs: Mapping[str, Any], caller: Caller = ANONYMOUS) -> UploadedInputs:
        """The uploaded files among the raw inputs of a request.

        Files and outputs that the caller may not see are errors, unless their URLs are signed: links of this service,
        or presigned URLs of its bucket. Raises `StorageUnavailable` if the bucket cannot be asked.
        """
        loras: dict[str, Reference] = {}
        errors = []
        for field in (*IMAGE_FIELDS, *LORA_FIELDS):
            text = inputs.get(field)
            if not isinstance(text, str) or len(text) > MAX_CHARS:
                continue
            url = unquoted(text) if field in LORA_FIELDS else text
            try:
                file = await self._find_file(url)
                if file is not None:
                    await self._check_file(url, file, caller)
                elif field in IMAGE_FIELDS:
                    await self._check_output(url, caller)
            except NotFound as error:
                errors.append(FieldError(field, str(error)))
                continue
            if file is None or field not in LORA_FIELDS:
                continue
            try:
                loras[text.strip()] = _lora(text, UploadedFile(file.sha256, file.id))
            except UnrecognizedForm:
                errors.append(FieldError(field, "the path after # has unprintable characters; correct it"))
        return UploadedInputs(loras, tuple(errors))

    async def read(self, url: str, max_bytes: int) -> bytes | None:
        """The content of a file or an output, or None if `url` is not this service's. Raises `FetchFailed`.

        Call `find` before: only it checks who may see it.
        """
        _, path = _origin_and_path(url)
        try:
            file = await with_patience(lambda: self._find_file(url), READ_PATIENCE_S)
            if file is not None and file.size_bytes > max_bytes:
                raise FetchFailed(path, f"it has more than {max_bytes} bytes")
            return await self._files.read(file.id) if file else await self._read_output(url)
        except NotFound as error:
            raise FetchFailed(path, str(error)) from error

    async def _check_file(self, url: str, file: StoredFile, caller: Caller) -> None:
        """Raises `NotFound`."""
        if not caller.may_see(file.owner) and not await self._is_link(url, _FILE, content_key(file.id)):
            raise self._files.not_found(file.id)

    async def _check_output(self, url: str, caller: Caller) -> None:
        """Raises `NotFound` for an output that the caller may not see, at any URL, because `read` would return it."""
        match = _OUTPUT.fullmatch(_origin_and_path(url)[1])
        if match is None or caller.visible_owner is None:
            return
        try:
            prediction = await self._predictions.get(match["prediction_id"])
            key = self._outputs.key(prediction.id, match["name"])
        except NotFound:
            return
        if caller.may_see(prediction.owner) or await self._is_link(url, _OUTPUT, key):
            return
        if not await self._is_presigned(url, key):
            raise self._outputs.not_found()

    async def _is_presigned(self, url: str, key: str) -> bool:
        """Whether `url` is a valid presigned URL of what has this key in the bucket."""
        own = await self._outputs.presigned_url(key)
        return (
            own is not None
            and _origin_and_path(url) == _origin_and_path(own)
            and await self._bucket.is_valid(url.strip())
        )

    async def _is_link(self, url: str, pattern: re.Pattern[str], key: str) -> bool:
        """Whether `url` is a valid link to what has this key, for anyone."""
        match = pattern.fullmatch(_origin_and_path(url)[1])
        try:
            await self._links.check(key, (match and match["ticket"]) or "")
        except InvalidLink:
            return False
        return True

    async def _find_file(self, url: str) -> StoredFile | None:
        return await self._look_up(url, _FILE, lambda match: self._files.get(match["file_id"]))

    async def _read_output(self, url: str) -> bytes | None:
        output = await self._look_up(
            url, _OUTPUT, lambda match: self._outputs.read(match["prediction_id"], match["name"])
        )
        return None if output is None else output[0]

    async def _look_up(
        self, url: str, pattern: re.Pattern[str], read: Callable[[re.Match[str]], Awaitable[Result]]
    ) -> Result | None:
        """What `read` returns for a URL with such a path; None for other URLs.

        Raises `NotFound` for a URL below `public_url` if nothing is stored under it.
        """
        origin, path = _origin_and_path(url)
        match = pattern.fullmatch(path)
        if match is None:
            return None
        try:
            return await read(match)
        except NotFound:
            if (origin, match["base"]) == self._base:
                raise
            return None


class OwnFilesFirst:
    """A fetcher that reads this service's own files, and fetches other URLs by `fetcher`."""

    def __init__(self, own_files: OwnFiles, fetcher: Fetcher, max_bytes: int) -> None:
        self._own_files = own_files
        self._fetcher = fetcher
        self._max_bytes = max_bytes

    async def fetch(self, url: str) -> bytes:
        content = await self._own_files.read(url, self._max_bytes)
        return await self._fetcher.fetch(url) if content is None else content


def _lora(text: str, file: UploadedFile) -> Reference:
    """The file itself, or the one in it that `text` names after `#`. Raises `UnrecognizedForm`."""
    _, member = split_member(unquoted(text))
    return ArchiveMember(file, member) if member else file


def _origin_and_path(url: str) -> tuple[str, str]:
    """Scheme and host in lower case, and the path; empty for other texts than http(s) URLs."""
    if len(url) > MAX_CHARS:
        return "", ""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return "", ""
    if parts.scheme not in ("http", "https"):
        return "", ""
    return f"{parts.scheme}://{parts.netloc}".lower(), parts.path
