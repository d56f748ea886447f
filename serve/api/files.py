"""The files endpoints of the Replicate API: clients upload a file, and then send its URL as an input."""

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from serve.api.auth import caller_of
from serve.api.http_messages import PAGE_SIZE, page_json
from serve.api.multipart import DEFAULT_CONTENT_TYPE, receive_file
from serve.media.file_store import FileStore, StoredFile
from serve.predictions.prediction import rfc3339
from serve.settings import Settings

IMAGE_TYPES = frozenset(f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "avif"))
"""The content types of downloads, apart from the default one: HTML, SVG and others could run code in a browser."""
DOWNLOAD_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


def routes(files: FileStore, settings: Settings) -> list[Route]:
    api = FilesApi(files, settings)
    return [
        Route("/v1/files", api.create, methods=["POST"]),
        Route("/v1/files", api.page, methods=["GET"]),
        Route("/v1/files/{file_id}", api.get, methods=["GET"]),
        Route("/v1/files/{file_id}", api.delete, methods=["DELETE"]),
        Route("/v1/files/{file_id}/download", api.download, methods=["GET"]),
    ]


class FilesApi:
    def __init__(self, files: FileStore, settings: Settings) -> None:
        self._files = files
        self._max_file_bytes = settings.files.max_file_bytes
        self._upload_timeout_s = settings.files.upload_timeout_s
        self._base_url = f"{settings.outputs.base_url}/v1/files"

    async def create(self, request: Request) -> Response:
        with self._files.upload() as upload:
            receiving = receive_file(request, self._max_file_bytes, self._upload_timeout_s, upload.grow)
            async with receiving as received:
                stored = await upload.save(received.content, received.description, caller_of(request).owner)
        return JSONResponse(self._json(stored), 201)

    async def page(self, request: Request) -> Response:
        """Files, newest first."""
        owner = caller_of(request).visible_owner
        page = await self._files.page(request.query_params.get("cursor"), PAGE_SIZE + 1, owner)
        return JSONResponse(page_json([self._json(file) for file in page], PAGE_SIZE, self._base_url))

    async def get(self, request: Request) -> Response:
        file = await self._files.get(request.path_params["file_id"], caller_of(request).visible_owner)
        return JSONResponse(self._json(file))

    async def delete(self, request: Request) -> Response:
        await self._files.delete(request.path_params["file_id"], caller_of(request).visible_owner)
        return Response(status_code=204)

    async def download(self, request: Request) -> Response:
        file, status = await self._files.stat(request.path_params["file_id"], caller_of(request).visible_owner)
        headers = {**DOWNLOAD_HEADERS, "ETag": f'"{file.sha256}"'}
        if _has_tag(request.headers.get("If-None-Match", ""), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        content_type = file.description.content_type
        return FileResponse(
            file.path,
            headers=headers,
            media_type=content_type if content_type in IMAGE_TYPES else DEFAULT_CONTENT_TYPE,
            filename=file.description.name,
            stat_result=status,
        )

    def _json(self, file: StoredFile) -> dict[str, Any]:
        url = f"{self._base_url}/{file.id}"
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
            "urls": {"get": url, "download": f"{url}/download"},
        }


def _has_tag(if_none_match: str, etag: str) -> bool:
    """Whether a client that sends this `If-None-Match` header has the content already."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def _rfc3339(time_s: float) -> str:
    return rfc3339(datetime.fromtimestamp(time_s, UTC))
