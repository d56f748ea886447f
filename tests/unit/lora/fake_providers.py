"""Hosts of LoRAs as they behave, on this machine: files with tags and ranges, and the sites that lead to them."""

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from serve.lora.download import Downloader
from serve.lora.lora_fetcher import Downloadable, FileResolver
from serve.lora.provider import ResolvedFile
from serve.lora.reference import ReplicateModel
from serve.settings import LoraSettings, Secrets
from tests.local_server import LocalServer
from tests.unit.net.test_url_fetcher import TRUSTS_NOBODY

COMMIT = "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"
HUB_TOKEN, CIVITAI_TOKEN, REPLICATE_TOKEN = "hf_sesame", "civitai_sesame", "r8_sesame"
SECRETS = Secrets(
    hf_token=SecretStr(HUB_TOKEN),
    civitai_token=SecretStr(CIVITAI_TOKEN),
    replicate_token=SecretStr(REPLICATE_TOKEN),
)


def settings_for(*servers: LocalServer, **changes: Any) -> LoraSettings:
    """All sites are the first server; all servers may be reached."""
    base = f"http://127.0.0.1:{servers[0].port}"
    fetch = {"backoff_s": 0.001, "allowed_hosts": [f"127.0.0.1:{server.port}" for server in servers]}
    return LoraSettings.model_validate(
        {
            "huggingface_url": base,
            "civitai_url": f"{base}/",
            "replicate_url": base,
            "s3_url": f"{base}/{{bucket}}",
            "allow_http": True,
            **changes,
            "fetch": fetch | changes.get("fetch", {}),
        }
    )


async def locate(site: LocalServer, reference: Downloadable) -> ResolvedFile:
    """What a reference means, asked of a server that stands for all sites."""
    settings = settings_for(site)
    downloader = Downloader(settings, tls=TRUSTS_NOBODY)
    try:
        return await FileResolver(settings, SECRETS, downloader).resolve(reference)
    finally:
        downloader.close()


class PublishedFile:
    """A file at a path of a server, which answers as real hosts do: with its tag, in parts, and only if it changed."""

    def __init__(
        self,
        server: LocalServer,
        path: str,
        body: bytes,
        tag: str | None = '"one"',
        date: str | None = None,
        ranges: bool = True,
        breaks: Sequence[int] = (),
    ) -> None:
        self.url = server.behave(path, self._answer)
        self.body, self.tag, self.date, self.ranges = body, tag, date, ranges
        self.breaks = list(breaks)
        """The next answers break off after so many bytes."""
        self.starts: list[int] = []
        """At which byte each answer began."""
        self._server = server

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        head = self._server.heads[-1]
        if self._is_known(head):
            writer.write(f"HTTP/1.1 304 Not Modified\r\n{self._tags()}\r\n".encode())
            return
        start = self._start(head)
        status = "206 Partial Content" if start else "200 OK"
        told = f"Content-Range: bytes {start}-{len(self.body) - 1}/{len(self.body)}\r\n" if start else ""
        part = self.body[start:]
        length = f"Content-Length: {len(part)}\r\n"
        writer.write(f"HTTP/1.1 {status}\r\n{length}{told}{self._tags()}\r\n".encode())
        writer.write(part[: self.breaks.pop(0)] if self.breaks else part)
        self.starts.append(start)

    def _tags(self) -> str:
        tag = f"ETag: {self.tag}\r\n" if self.tag else ""
        return tag + (f"Last-Modified: {self.date}\r\n" if self.date else "")

    def _is_known(self, head: str) -> bool:
        known, since = header(head, "if-none-match"), header(head, "if-modified-since")
        return (known is not None and known == self.tag) or (since is not None and since == self.date)

    def _start(self, head: str) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", header(head, "range") or "")
        unchanged = header(head, "if-range") in (self.tag, self.date)
        return int(asked[1]) if asked and unchanged and self.ranges else 0


def header(head: str, name: str) -> str | None:
    """The value of a header of a request."""
    match = re.search(rf"^{name}: (.*?)\r$", head, re.IGNORECASE | re.MULTILINE)
    return match[1] if match else None


def asked_with(server: LocalServer, name: str) -> list[tuple[str, str | None]]:
    """What a server was asked for, and the value of a header of each request."""
    return [(head.split()[1], header(head, name)) for head in server.heads]


def publish_on_hub(
    hub: LocalServer, store: LocalServer, repository: str, files: Mapping[str, bytes], revision: str = "main"
) -> None:
    """A repository whose large files the hub redirects to another host, as it does."""
    told = []
    for name, body in files.items():
        large = name.endswith((".safetensors", ".zip", ".tar"))
        lfs = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 100}
        told.append({"rfilename": name, "size": len(body), "blobId": "0", **({"lfs": lfs} if large else {})})
        path = f"/{repository}/resolve/{COMMIT}/{name}".replace(" ", "%20")
        if large:
            stored = PublishedFile(store, f"/blobs/{lfs['sha256']}", body)
            hub.answer(path, status="302 Found", Location=f"{stored.url}?signature=of-the-store")
        else:
            PublishedFile(hub, path, body)
    tree = {"id": repository, "sha": COMMIT, "private": False, "gated": False, "siblings": told}
    hub.answer(f"/api/models/{repository}/revision/{revision}", body=json.dumps(tree).encode())


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
    site: LocalServer,
    store: LocalServer,
    model: int,
    versions: Sequence[dict[str, Any]],
    body: bytes,
    kind: str = "LORA",
) -> None:
    """A model with versions, whose downloads the site redirects to another host, as it does."""
    page = {"id": model, "name": "A LoRA", "type": kind, "modelVersions": list(versions)}
    site.answer(f"/api/v1/models/{model}", body=json.dumps(page).encode())
    for version in versions:
        alone = {**version, "modelId": model, "model": {"name": "A LoRA", "type": kind}}
        site.answer(f"/api/v1/model-versions/{version['id']}", body=json.dumps(alone).encode())
        stored = PublishedFile(store, f"/bucket/{version['id']}", body)
        site.answer(f"/api/download/models/{version['id']}", status="307 Temporary Redirect", Location=stored.url)


def publish_on_replicate(
    site: LocalServer, store: LocalServer, model: ReplicateModel, body: bytes, tag: str = '"one"'
) -> PublishedFile:
    """The weights of a fine-tune, which the site redirects to another host, as it does."""
    stored = PublishedFile(store, f"/delivery/{model.name}/trained_model.tar", body, tag)
    version = f"/versions/{model.version}" if model.version else ""
    site.answer(f"/{model.owner}/{model.name}{version}/_weights", status="302 Found", Location=stored.url)
    return stored
