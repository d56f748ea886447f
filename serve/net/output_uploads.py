"""Uploads images to a URL of the caller or the operator, as Cog does."""

from urllib.parse import quote

from serve.errors import OutputUploadFailed
from serve.net.http_client import HttpClient, RequestFailed
from serve.net.url import InvalidUrl, parse_url


class OutputUploads:
    """Sends images with the client's SSRF guard, limits and retries."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    async def upload(self, prefix: str, name: str, content: bytes, media_type: str, prediction_id: str) -> str:
        """Sends an image with PUT to `prefix`/`name`. Raises `OutputUploadFailed`.

        Returns the URL of the response's `Location` without its query, or else the URL that it was sent to.
        """
        headers = {"Content-Type": media_type, "X-Prediction-ID": prediction_id}
        try:
            url = parse_url(f"{prefix.rstrip('/')}/{quote(name)}")

            async def attempt() -> str | None:
                return await self._client.put(url, content, headers)

            location = await self._client.with_retries(attempt)
            return str(url if location is None else parse_url(location, base=url).copy_with(query=None))
        except (RequestFailed, InvalidUrl) as error:
            raise OutputUploadFailed(str(error)) from error
