"""The files endpoints of the Replicate API: clients upload a file, and then send its URL as an input."""

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.access.caller import OPERATOR, Caller
from serve.api.auth import caller_of
from serve.api.http_messages import PAGE_SIZE
from serve.api.multipart import DEFAULT_CONTENT_TYPE, receive_file
from serve.api.pages import forward_page
from serve.api.stored_content import StoredContent, stored_response
from serve.media.file_rows import StoredFile
from serve.media.file_store import FileStore, content_key
from serve.media.links import PREFIX, LinkSigner
from serve.media.object_store import ObjectStore
from serve.predictions.prediction import rfc3339
from serve.settings import Settings

PATH = "/v1/files"
IMAGE_TYPES = frozenset(f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "avif"))
"""The content types of downloads, apart from the default one: HTML, SVG and others could run code in a browser."""
DOWNLOAD_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


def routes(files: FileStore, store: ObjectStore, links: LinkSigner, settings: Settings) -> list[Route]:
    api = FilesApi(files, store, links, settings)
    return [
        Route(PATH, api.create, methods=["POST"]),
        Route(PATH, api.page, methods=["GET"]),
        Route(f"{PATH}/{{file_id}}", api.get, methods=["GET"]),
        Route(f"{PATH}/{{file_id}}", api.delete, methods=["DELETE"]),
        Route(f"{PATH}/{{file_id}}/download", api.download, methods=["GET"]),
        Route(f"{PREFIX}{{ticket}}{PATH}/{{file_id}}/download", api.linked_download, methods=["GET"]),
    ]


class FilesApi:
    def __init__(self, files: FileStore, store: ObjectStore, links: LinkSigner, settings: Settings) -> None:
        self._files = files
        self._store = store
        self._links = links
        self._max_file_bytes = settings.files.max_file_bytes
        self._upload_timeout_s = settings.files.upload_timeout_s
        self._service_url = settings.outputs.base_url
        self._base_url = f"{self._service_url}{PATH}"

    async def create(self, request: Request) -> Response:
        async with self._files.upload() as upload:
            receiving = receive_file(request, self._max_file_bytes, self._upload_timeout_s, upload.grow)
            async with receiving as received:
                stored = await upload.save(received.content, received.description, caller_of(request).owner)
        return JSONResponse(await self._json(stored), 201)

    async def page(self, request: Request) -> Response:
        """Files, newest first."""
        owner = caller_of(request).visible_owner
        page = await self._files.page(request.query_params.get("cursor"), PAGE_SIZE + 1, owner)
        return JSONResponse(forward_page([await self._json(file) for file in page], PAGE_SIZE, self._base_url))

    async def get(self, request: Request) -> Response:
        file = await self._files.get(request.path_params["file_id"], caller_of(request).visible_owner)
        return JSONResponse(await self._json(file))

    async def delete(self, request: Request) -> Response:
        await self._files.delete(request.path_params["file_id"], caller_of(request).visible_owner)
        return Response(status_code=204)

    async def download(self, request: Request) -> Response:
        return await self._download(request, caller_of(request))

    async def linked_download(self, request: Request) -> Response:
        await self._links.check(content_key(request.path_params["file_id"]), request.path_params["ticket"])
        return await self._download(request, OPERATOR)

    async def _download(self, request: Request, caller: Caller) -> Response:
        file_id = request.path_params["file_id"]
        file = await self._files.get(file_id, caller.visible_owner)
        content_type = file.description.content_type
        content = StoredContent(
            content_key(file.id),
            content_type if content_type in IMAGE_TYPES else DEFAULT_CONTENT_TYPE,
            "attachment",
            file.description.name,
            f'"{file.sha256}"',
        )
        try:
            return await stored_response(request, self._store, content, DOWNLOAD_HEADERS)
        except FileNotFoundError:
            raise self._files.not_found(file_id) from None

    async def _json(self, file: StoredFile) -> dict[str, Any]:
        url = f"{self._base_url}/{file.id}"
        link = f"{self._service_url}{PREFIX}{await self._links.ticket(content_key(file.id))}"
        return {
            "id": file.id,
            "name": file.description.name,
            "content_type": file.description.content_type,
            "size": file.size_bytes,
            "etag": file.sha256,
            "checksums": {"sha256": file.sha256},
            "metadata": file.description.metadata,
            "created_at": _rfc3339(file.created_s),
            "expires_at": _rfc3339(file.expires_s),
            "urls": {"get": url, "download": f"{link}{PATH}/{file.id}/download"},
        }


def _rfc3339(time_s: float) -> str:
    return rfc3339(datetime.fromtimestamp(time_s, UTC))
