"""Fakes of Replicate, Hugging Face and CivitAI on local HTTP servers, and of the hosts that they redirect to."""

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from serve.lora.download import create_http_client
from serve.lora.fetcher import LoraFetcher, RemoteReference
from serve.lora.provider import ResolvedFile
from serve.lora.reference import ReplicateModel
from serve.settings import LoraSettings, Secrets
from tests.local_server import EMPTY_TRUST_STORE, LocalServer

COMMIT = "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"
HUB_TOKEN, CIVITAI_TOKEN, REPLICATE_TOKEN = "hf_secret", "civitai_secret", "r8_secret"
SECRETS = Secrets(
    hf_token=SecretStr(HUB_TOKEN),
    civitai_token=SecretStr(CIVITAI_TOKEN),
    replicate_token=SecretStr(REPLICATE_TOKEN),
)


def settings_for(*servers: LocalServer, **fields: Any) -> LoraSettings:
    """Settings with the first server as all providers. All servers are allowed hosts."""
    base_url = f"http://127.0.0.1:{servers[0].port}"
    fetch = {"backoff_s": 0.001, "allowed_hosts": [f"127.0.0.1:{server.port}" for server in servers]}
    return LoraSettings.model_validate(
        {
            "huggingface_url": base_url,
            "civitai_url": f"{base_url}/",
            "replicate_url": base_url,
            "s3_url": f"{base_url}/{{bucket}}",
            "allow_http": True,
            **fields,
            "fetch": fetch | fields.get("fetch", {}),
        }
    )


async def resolve(provider: LocalServer, reference: RemoteReference) -> ResolvedFile:
    """Resolves `reference` with `provider` as all providers."""
    settings = settings_for(provider)
    client = create_http_client(settings, tls=EMPTY_TRUST_STORE)
    try:
        return await LoraFetcher(settings, SECRETS, client).resolve(reference)
    finally:
        client.close()


class PublishedFile:
    """A file on a server that supports ETag, Last-Modified, range requests and conditional requests."""

    def __init__(
        self,
        server: LocalServer,
        path: str,
        body: bytes,
        etag: str | None = '"one"',
        last_modified: str | None = None,
        ranges: bool = True,
        break_after: Sequence[int] = (),
    ) -> None:
        self.url = server.respond_with(path, self._respond)
        self.body, self.etag, self.last_modified, self.ranges = body, etag, last_modified, ranges
        self.break_after = list(break_after)
        """After how many bytes each of the next responses is cut off."""
        self.starts: list[int] = []
        """The index of the first byte of each response with content."""
        self._server = server

    async def _respond(self, writer: asyncio.StreamWriter) -> None:
        head = self._server.heads[-1]
        if self._is_unchanged(head):
            writer.write(f"HTTP/1.1 304 Not Modified\r\n{self._validators()}\r\n".encode())
            return
        start = self._start(head)
        status = "206 Partial Content" if start else "200 OK"
        content_range = f"Content-Range: bytes {start}-{len(self.body) - 1}/{len(self.body)}\r\n" if start else ""
        part = self.body[start:]
        length = f"Content-Length: {len(part)}\r\n"
        writer.write(f"HTTP/1.1 {status}\r\n{length}{content_range}{self._validators()}\r\n".encode())
        writer.write(part[: self.break_after.pop(0)] if self.break_after else part)
        self.starts.append(start)

    def _validators(self) -> str:
        etag = f"ETag: {self.etag}\r\n" if self.etag else ""
        return etag + (f"Last-Modified: {self.last_modified}\r\n" if self.last_modified else "")

    def _is_unchanged(self, head: str) -> bool:
        etag, date = header(head, "if-none-match"), header(head, "if-modified-since")
        return (etag is not None and etag == self.etag) or (date is not None and date == self.last_modified)

    def _start(self, head: str) -> int:
        requested = re.fullmatch(r"bytes=(\d+)-", header(head, "range") or "")
        is_unchanged = header(head, "if-range") in (self.etag, self.last_modified)
        return int(requested[1]) if requested and is_unchanged and self.ranges else 0


def header(head: str, name: str) -> str | None:
    """The value of a request header."""
    match = re.search(rf"^{name}: (.*?)\r$", head, re.IGNORECASE | re.MULTILINE)
    return match[1] if match else None


def requests_with_header(server: LocalServer, name: str) -> list[tuple[str, str | None]]:
    """The path and query and the value of a header, for each request to `server`."""
    return [(head.split()[1], header(head, name)) for head in server.heads]


def publish_on_hub(
    hub: LocalServer, file_host: LocalServer, repository: str, files: Mapping[str, bytes], revision: str = "main"
) -> None:
    """Publishes a repository. As on the real Hub, large files are in LFS and redirect to another host."""
    siblings = []
    for name, body in files.items():
        is_large = name.endswith((".safetensors", ".zip", ".tar"))
        lfs = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 100}
        siblings.append({"rfilename": name, "size": len(body), "blobId": "0", **({"lfs": lfs} if is_large else {})})
        path = f"/{repository}/resolve/{COMMIT}/{name}".replace(" ", "%20")
        if is_large:
            file = PublishedFile(file_host, f"/blobs/{lfs['sha256']}", body)
            hub.respond(path, status="302 Found", Location=f"{file.url}?signature=of-the-file-host")
        else:
            PublishedFile(hub, path, body)
    response = {"id": repository, "sha": COMMIT, "private": False, "gated": False, "siblings": siblings}
    hub.respond(f"/api/models/{repository}/revision/{revision}", body=json.dumps(response).encode())


def civitai_file(body: bytes, **fields: Any) -> dict[str, Any]:
    metadata = {"format": "SafeTensor", "size": "full", "fp": "fp16", **fields.pop("metadata", {})}
    hashes = {"AutoV2": "0", "SHA256": hashlib.sha256(body).hexdigest().upper()}
    return {
        "name": "lora.safetensors",
        "type": "Model",
        "primary": True,
        "hashes": hashes,
        **fields,
        "metadata": metadata,
    }


def civitai_version(number: int, *files: dict[str, Any], base_model: str | None = "Flux.1 D") -> dict[str, Any]:
    return {"id": number, "name": "v1", "baseModel": base_model, "files": list(files)}


def publish_on_civitai(
    civitai: LocalServer,
    file_host: LocalServer,
    model: int,
    versions: Sequence[dict[str, Any]],
    body: bytes,
    model_type: str = "LORA",
) -> None:
    """Publishes a model with versions. As on the real CivitAI, downloads redirect to another host."""
    response = {"id": model, "name": "A LoRA", "type": model_type, "modelVersions": list(versions)}
    civitai.respond(f"/api/v1/models/{model}", body=json.dumps(response).encode())
    for version in versions:
        response = {**version, "modelId": model, "model": {"name": "A LoRA", "type": model_type}}
        civitai.respond(f"/api/v1/model-versions/{version['id']}", body=json.dumps(response).encode())
        file = PublishedFile(file_host, f"/bucket/{version['id']}", body)
        civitai.respond(f"/api/download/models/{version['id']}", status="307 Temporary Redirect", Location=file.url)


def publish_on_replicate(
    replicate: LocalServer, file_host: LocalServer, model: ReplicateModel, body: bytes, etag: str = '"one"'
) -> PublishedFile:
    """Publishes the weights of a fine-tuned model. As on the real Replicate, they redirect to another host."""
    file = PublishedFile(file_host, f"/delivery/{model.name}/trained_model.tar", body, etag)
    version = f"/versions/{model.version}" if model.version else ""
    replicate.respond(f"/{model.owner}/{model.name}{version}/_weights", status="302 Found", Location=file.url)
    return file
