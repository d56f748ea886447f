"""Checks presigned URLs of the operator's bucket."""

from http.client import INTERNAL_SERVER_ERROR, OK, PARTIAL_CONTENT

from serve.errors import StorageUnavailable
from serve.net.http_client import HttpClient, RequestFailed, origin
from serve.net.url import InvalidUrl, parse_url
from serve.settings import FetchSettings

ONE_BYTE = {"Range": "bytes=0-0"}


class PresignedUrls:
    """Asks the bucket, which alone can verify its signatures. The bucket may have a private address."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._clients: dict[str, HttpClient] = {}
        """By host and port; there is one bucket."""

    async def is_valid(self, url: str) -> bool:
        """Whether a URL whose host is the bucket's can be read. Raises `StorageUnavailable`."""
        try:
            parsed = parse_url(url)
            async with self._client(*origin(parsed)[1:]).get(parsed, ONE_BYTE) as response:
                status = response.status
        except InvalidUrl:
            return False
        except RequestFailed as error:
            if error.retryable:
                raise StorageUnavailable from error
            return False
        if status >= INTERNAL_SERVER_ERROR:
            raise StorageUnavailable
        return status in (OK, PARTIAL_CONTENT)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _client(self, host: str, port: int) -> HttpClient:
        entry = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if entry not in self._clients:
            limits = self._settings.model_copy(update={"allowed_hosts": (entry,), "max_redirects": 0})
            self._clients[entry] = HttpClient(limits)
        return self._clients[entry]
