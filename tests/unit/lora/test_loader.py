"""Loads LoRAs from every kind of reference, from the caller's text to the weights or to the right error."""

import asyncio
import base64
import gzip
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from serve.errors import FetchFailed, InvalidLora, PredictionFailed
from serve.lora.download import create_http_client
from serve.lora.loader import LoadedLora, LoraLoader
from serve.lora.parse_reference import parse_reference
from serve.lora.peft_config import ADAPTER_METADATA_KEY
from serve.lora.reference import ReplicateModel
from serve.net.http_client import HttpClient
from serve.settings import Secrets
from tests.local_server import EMPTY_TRUST_STORE, FakeResolver, LocalServer
from tests.logs import Logs
from tests.unit.lora import fake_providers, lora_files
from tests.unit.lora.archives import tar_of, zip64_of, zip_of
from tests.unit.lora.fake_providers import (
    SECRETS,
    PublishedFile,
    requests_with_header,
    settings_for,
)
from tests.unit.lora.geometries import TINY

PAIRS = lora_files.transformer_pairs(TINY)
TENSORS = {name: tensor.clone() for name, tensor in lora_files.diffusers(PAIRS).items()}
WEIGHTS = safetensors.torch.save(TENSORS)
TAR = tar_of(("output/flux_train_replicate/lora.safetensors", WEIGHTS))
QUERY = "transformer_blocks.0.attn.to_q"


class LoaderHarness:
    """A loader whose providers are one local server, with a file host and a folder of local files."""

    def __init__(self, provider: LocalServer, file_host: LocalServer, folder: Path) -> None:
        self.provider, self.file_host = provider, file_host
        self.scratch_folder, self.local_folder = folder / "scratch", folder / "local"
        self.scratch_folder.mkdir()
        self.local_folder.mkdir()
        self._client: HttpClient | None = None
        self.configure()

    def configure(self, resolver: FakeResolver | None = None, secrets: Secrets = SECRETS, **settings: Any) -> None:
        """Replaces the loader with one that has these settings."""
        self.close()
        self.settings = settings_for(self.provider, self.file_host, folders=[str(self.local_folder)], **settings)
        self._client = create_http_client(self.settings, resolver, EMPTY_TRUST_STORE)
        self._loader = LoraLoader(self.settings, secrets, self._client, self.scratch_folder)

    def close(self) -> None:
        if self._client:
            self._client.close()

    async def load_if_changed(self, text: str, known_revision: str | None) -> LoadedLora | None:
        loaded = await self._loader.load(parse_reference(text, self.settings), TINY, known_revision)
        assert list(self.scratch_folder.iterdir()) == []
        return loaded

    async def load(self, text: str) -> LoadedLora:
        loaded = await self.load_if_changed(text, None)
        assert loaded is not None
        return loaded

    async def load_error(self, text: str) -> PredictionFailed:
        with pytest.raises(PredictionFailed) as caught:
            await self.load(text)
        assert list(self.scratch_folder.iterdir()) == []
        return caught.value

    def publish(self, path: str, body: bytes, **options: Any) -> str:
        """Publishes a file on the file host. Returns its URL."""
        return PublishedFile(self.file_host, path, body, **options).url


@pytest.fixture
async def harness(provider: LocalServer, file_host: LocalServer, tmp_path: Path) -> AsyncIterator[LoaderHarness]:
    harness = LoaderHarness(provider, file_host, tmp_path)
    yield harness
    harness.close()


def etag_of(body: bytes) -> str:
    return f'"{len(body)}"'


def publish_hub_file(harness: LoaderHarness, body: bytes) -> str:
    files = {"README.md": b"#", "x.safetensors": body}
    fake_providers.publish_on_hub(harness.provider, harness.file_host, "o/r", files)
    return "huggingface.co/o/r"


def publish_hub_archive(harness: LoaderHarness, body: bytes) -> str:
    files = {"trained.tar": tar_of(("lora.safetensors", body))}
    fake_providers.publish_on_hub(harness.provider, harness.file_host, "o/r", files)
    return "https://huggingface.co/o/r/blob/main/trained.tar"


def publish_civitai_model(harness: LoaderHarness, body: bytes) -> str:
    version = fake_providers.civitai_version(72, fake_providers.civitai_file(body))
    fake_providers.publish_on_civitai(harness.provider, harness.file_host, 5, [version], body)
    return "civitai.com/models/5/a-lora"


def publish_replicate_model(harness: LoaderHarness, body: bytes) -> str:
    archive = tar_of(("output/config.yaml", b"x: 1"), ("output/flux_train_replicate/lora.safetensors", body))
    model = ReplicateModel("fofr", "flux-x")
    fake_providers.publish_on_replicate(harness.provider, harness.file_host, model, archive, etag_of(body))
    return "fofr/flux-x"


def publish_replicate_version(harness: LoaderHarness, body: bytes) -> str:
    model = ReplicateModel("fofr", "flux-x", "d592f697")
    archive = tar_of(("lora.safetensors", body))
    fake_providers.publish_on_replicate(harness.provider, harness.file_host, model, archive)
    return "fofr/flux-x:d592f697"


def publish_s3_object(harness: LoaderHarness, body: bytes) -> str:
    PublishedFile(harness.provider, "/studio-loras/a%20style.safetensors", body, etag_of(body))
    return "s3://studio-loras/a style.safetensors"


def publish_url(harness: LoaderHarness, body: bytes) -> str:
    return f"{harness.publish('/a/X.SafeTensors', body, etag=etag_of(body))}?signature=mine"


def publish_tar_gz_url(harness: LoaderHarness, body: bytes) -> str:
    return harness.publish("/lora.tar.gz", gzip.compress(tar_of(("lora.safetensors", body))), etag=etag_of(body))


def publish_zip_url(harness: LoaderHarness, body: bytes) -> str:
    return harness.publish("/lora.zip", zip_of(("lora.safetensors", body)), etag=etag_of(body))


def publish_url_without_suffix(harness: LoaderHarness, body: bytes) -> str:
    return f"{harness.publish('/download/5', body, etag=etag_of(body))}?signature=mine"


def publish_archive_without_suffix(harness: LoaderHarness, body: bytes) -> str:
    return harness.publish("/download", zip64_of(("lora.safetensors", body)), etag=etag_of(body))


def publish_archive_with_two_checkpoints(harness: LoaderHarness, body: bytes) -> str:
    archive = tar_of(("run/first.safetensors", b"other"), ("run/a b.safetensors", body))
    return f"{harness.publish('/run.tar', archive, etag=etag_of(body))}?signature=mine#run/a%20b.safetensors"


def publish_replicate_model_with_two_checkpoints(harness: LoaderHarness, body: bytes) -> str:
    archive = tar_of(("first.safetensors", b"other"), ("second.safetensors", body))
    model = ReplicateModel("fofr", "flux-x")
    fake_providers.publish_on_replicate(harness.provider, harness.file_host, model, archive, etag_of(body))
    return "fofr/flux-x#second.safetensors"


def write_local_file(harness: LoaderHarness, body: bytes) -> str:
    path = harness.local_folder / "style.safetensors"
    path.write_bytes(body)
    os.utime(path, ns=(len(body), len(body)))
    return str(path)


def data_uri(harness: LoaderHarness, body: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(body).decode()}"


def data_uri_of_tar(harness: LoaderHarness, body: bytes) -> str:
    archive = tar_of(("lora.safetensors", body))
    return f"data:application/x-tar;base64,{base64.b64encode(archive).decode()}"


def data_uri_of_two_checkpoints(harness: LoaderHarness, body: bytes) -> str:
    archive = zip_of(("first.safetensors", b"other"), ("second.safetensors", body))
    return f"data:;base64,{base64.b64encode(archive).decode()}#second.safetensors"


Publish = Callable[[LoaderHarness, bytes], str]
"""Publishes a weights file. Returns a reference to it."""
REVALIDATED_SOURCES: tuple[Publish, ...] = (
    publish_hub_file,
    publish_hub_archive,
    publish_civitai_model,
    publish_replicate_model,
    publish_replicate_version,
    publish_s3_object,
    publish_url,
    publish_tar_gz_url,
    publish_zip_url,
    publish_url_without_suffix,
    publish_archive_without_suffix,
    publish_archive_with_two_checkpoints,
    publish_replicate_model_with_two_checkpoints,
    write_local_file,
)
SOURCES = (*REVALIDATED_SOURCES, data_uri, data_uri_of_tar, data_uri_of_two_checkpoints)


@pytest.mark.parametrize("publish", SOURCES)
async def test_lora_is_loaded_from_every_source(harness: LoaderHarness, publish: Publish) -> None:
    loaded = await harness.load(publish(harness, WEIGHTS))
    lora_files.assert_equal_weights(loaded.weights.transformer, PAIRS)
    assert loaded.weights.unapplied == ()
    assert loaded.revision
    assert loaded.fetched_bytes > 0.5 * len(WEIGHTS)
    assert 0 < loaded.fetch_s < 60
    assert 0 < loaded.check_s < 60


@pytest.mark.parametrize("publish", REVALIDATED_SOURCES)
async def test_unchanged_content_is_not_loaded_again(harness: LoaderHarness, publish: Publish) -> None:
    text = publish(harness, WEIGHTS)
    first = await harness.load(text)
    assert await harness.load_if_changed(text, first.revision) is None
    if publish is publish_replicate_version:
        return  # Its content cannot change.
    publish(harness, safetensors.torch.save(lora_files.diffusers({QUERY: PAIRS[QUERY]})))
    second = await harness.load_if_changed(text, first.revision)
    assert second is not None
    assert second.revision != first.revision
    assert second.weights.transformer.keys() == {QUERY}


async def test_tokens_are_sent_to_their_providers_only(harness: LoaderHarness) -> None:
    for publish in (
        publish_hub_file,
        publish_civitai_model,
        publish_replicate_model,
        publish_url,
        publish_s3_object,
    ):
        await harness.load(publish(harness, WEIGHTS))
    sent = {path.split("?")[0]: value for path, value in requests_with_header(harness.provider, "authorization")}
    assert {path for path, value in sent.items() if value is None} == {"/studio-loras/a%20style.safetensors"}
    assert sent["/fofr/flux-x/_weights"] == f"Bearer {fake_providers.REPLICATE_TOKEN}"
    assert sent["/api/v1/models/5"] == sent["/api/download/models/72"] == f"Bearer {fake_providers.CIVITAI_TOKEN}"
    assert {value for path, value in sent.items() if "/o/r" in path} == {f"Bearer {fake_providers.HUB_TOKEN}"}
    assert {value for _, value in requests_with_header(harness.file_host, "authorization")} == {None}


def weights_with_config(config: Mapping[str, Any]) -> bytes:
    fields = {f"transformer.{name}": value for name, value in config.items()}
    return safetensors.torch.save(TENSORS, {ADAPTER_METADATA_KEY: json.dumps(fields)})


async def test_peft_config_in_the_header_is_applied(harness: LoaderHarness) -> None:
    loaded = await harness.load(publish_url(harness, weights_with_config({"lora_alpha": 6, "r": 3})))
    assert loaded.weights.transformer[QUERY].scale == 2


@pytest.mark.parametrize("in_archive", [False, True])
async def test_adapter_config_next_to_the_weights_is_applied(harness: LoaderHarness, in_archive: bool) -> None:
    files = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": b'{"lora_alpha": 6, "r": 3}'}
    if in_archive:
        text = harness.publish("/x.zip", zip_of(*files.items()))
    else:
        fake_providers.publish_on_hub(harness.provider, harness.file_host, "o/r", files)
        text = "huggingface.co/o/r"
    assert (await harness.load(text)).weights.transformer[QUERY].scale == 2


async def test_empty_adapter_config_next_to_the_weights_replaces_that_in_them(harness: LoaderHarness) -> None:
    """The weights are an archive under the name of a weights file."""
    archive = zip_of(("adapter_config.json", b'{"lora_alpha": 6, "r": 3}'), ("adapter_model.safetensors", WEIGHTS))
    files = {"adapter_model.safetensors": archive, "adapter_config.json": b""}
    fake_providers.publish_on_hub(harness.provider, harness.file_host, "o/r", files)
    assert (await harness.load("huggingface.co/o/r")).weights.transformer[QUERY].scale == 1


def peft_archive(pattern: str) -> bytes:
    config = json.dumps({"lora_alpha": 3, "alpha_pattern": {pattern: 12}})
    tensors = safetensors.torch.save(
        {f"base_model.model.{name.removeprefix('transformer.')}": tensor for name, tensor in TENSORS.items()}
    )
    return tar_of(("out/adapter_config.json", config.encode()), ("out/adapter_model.safetensors", tensors))


async def test_patterns_of_an_adapter_config_are_regular_expressions(harness: LoaderHarness) -> None:
    archive = peft_archive(r"transformer_blocks\.\d+\.attn\.to_[qk]")
    loaded = await harness.load(harness.publish("/x.tar", archive))
    assert loaded.weights.transformer[QUERY].scale == 4
    assert loaded.weights.transformer[QUERY.replace("to_q", "to_v")].scale == 1


@pytest.mark.parametrize("pattern", ["to_[q", "(?:(?:a{9999}){9999}){9999}"])
async def test_unusable_pattern_of_an_adapter_config_is_refused(harness: LoaderHarness, pattern: str) -> None:
    error = await harness.load_error(harness.publish("/x.tar", peft_archive(pattern)))
    assert isinstance(error, InvalidLora)
    assert "adapter_config.json" in str(error)
    assert pattern in str(error)


@asynccontextmanager
async def other_loads_unaffected(harness: LoaderHarness) -> AsyncIterator[None]:
    """Checks that a valid LoRA loads to the same bytes before and after the block."""
    text = harness.publish("/good.safetensors", WEIGHTS)
    before = await harness.load(text)
    yield
    after = await harness.load(text)
    assert bytes(after.block) == bytes(before.block)


def rank_4096() -> bytes:
    return safetensors.torch.save(lora_files.diffusers({QUERY: (torch.ones(4096, 16), torch.ones(16, 4096))}))


def nan_weights() -> bytes:
    down, up = PAIRS[QUERY]
    return safetensors.torch.save(lora_files.diffusers({QUERY: (down, torch.full_like(up, torch.nan))}))


def sdxl_weights() -> bytes:
    pairs = {"input_blocks.4.1.transformer_blocks.0.attn2.to_k": (torch.ones(2, 2048), torch.ones(640, 2))}
    return safetensors.torch.save(lora_files.with_underscores(pairs, "lora_unet_"))


def wide_weights() -> bytes:
    return safetensors.torch.save(lora_files.diffusers({QUERY: (torch.ones(2, 3072), torch.ones(3072, 2))}))


INVALID_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "web page": ("/x.safetensors", lambda: b"<!doctype html><html>", "web page"),
    "web page at a URL without a suffix": ("/download/5", lambda: b"\n<html>", "web page"),
    "image at a URL without a suffix": ("/download", lambda: b"\x89PNG\r\n\x1a\n" + bytes(600), "unknown"),
    "JSON error": ("/x.safetensors", lambda: b'{"error":"no"}', "JSON"),
    "pickle": ("/x.safetensors", lambda: b"\x80\x02}q\0.", "pickle"),
    "empty file": ("/x.safetensors", lambda: b"", "empty"),
    "truncated": ("/x.safetensors", lambda: WEIGHTS[:-1000], "truncated"),
    "truncated archive": ("/x.tar", lambda: TAR[: len(TAR) // 2], "truncated"),
    "empty archive": ("/x.tar", tar_of, "archive is empty"),
    "two weights files": (
        "/x.zip",
        lambda: zip_of(("one.safetensors", WEIGHTS), ("two.safetensors", WEIGHTS)),
        "one.safetensors, two.safetensors",
    ),
    "zip bomb": ("/x.zip", lambda: zip_of(("a.safetensors", bytes(3_000_000))), "2000000 bytes"),
    "SDXL": ("/x.safetensors", sdxl_weights, "Stable Diffusion"),
    "wider model": ("/x.safetensors", wide_weights, "another model"),
    "rank 4096": ("/x.safetensors", rank_4096, "4096"),
    "NaN": ("/x.safetensors", nan_weights, "NaN"),
    "too many tensors": (
        "/x.safetensors",
        lambda: safetensors.torch.save({str(number): torch.zeros(0) for number in range(501)}),
        "501 tensors",
    ),
    "DoRA": (
        "/x.safetensors",
        lambda: safetensors.torch.save(TENSORS | {f"transformer.{QUERY}.dora_scale": torch.ones(16, 1)}),
        "DoRA",
    ),
}


@pytest.mark.parametrize(("path", "body", "word"), INVALID_FILES.values(), ids=INVALID_FILES)
async def test_invalid_file_is_rejected_without_affecting_others(
    harness: LoaderHarness, path: str, body: Callable[[], bytes], word: str
) -> None:
    harness.configure(max_tensors=500, fetch={"max_bytes": 2_000_000})
    async with other_loads_unaffected(harness):
        url = harness.publish(path, body())
        error = await harness.load_error(f"{url}?signature=secret")
    assert isinstance(error, InvalidLora)
    assert error.what == url
    assert word in error.why
    assert "secret" not in str(error)


async def test_checkpoints_of_one_archive_are_two_loras(harness: LoaderHarness) -> None:
    first = safetensors.torch.save(lora_files.diffusers({QUERY: PAIRS[QUERY]}))
    url = harness.publish("/run.zip", zip_of(("one.safetensors", first), ("two.safetensors", WEIGHTS)))
    one, two = [await harness.load(f"{url}#{name}.safetensors") for name in ("one", "two")]
    assert one.weights.transformer.keys() == {QUERY}
    assert two.weights.transformer.keys() == PAIRS.keys()


@pytest.mark.parametrize(("path", "word"), [("/run.zip", "one.safetensors"), ("/x.safetensors", "not an archive")])
async def test_checkpoint_that_the_file_does_not_have_is_rejected(harness: LoaderHarness, path: str, word: str) -> None:
    body = zip_of(("one.safetensors", WEIGHTS)) if path == "/run.zip" else WEIGHTS
    url = harness.publish(path, body)
    error = await harness.load_error(f"{url}?signature=secret#three.safetensors")
    assert isinstance(error, InvalidLora)
    assert error.what == f"{url}#three.safetensors"
    assert word in error.why


async def test_missing_archive_is_named_without_its_signature(harness: LoaderHarness) -> None:
    harness.file_host.respond("/run.zip", status="404 Not Found")
    url = f"http://127.0.0.1:{harness.file_host.port}/run.zip"
    error = await harness.load_error(f"{url}?signature=secret#a.safetensors")
    assert isinstance(error, FetchFailed)
    assert error.what == url


async def test_missing_lora_fails_without_affecting_others(harness: LoaderHarness) -> None:
    for server in (harness.provider, harness.file_host):
        server.respond("/o/r/_weights", status="404 Not Found")
        server.respond("/x.safetensors", status="404 Not Found")
    url = f"http://127.0.0.1:{harness.file_host.port}/x.safetensors"
    async with other_loads_unaffected(harness):
        for text in ("o/r", url):
            error = await harness.load_error(text)
            assert isinstance(error, FetchFailed)
            assert error.what == text
            assert "404 Not Found" in error.why


@pytest.mark.parametrize(
    ("text", "path", "variable"),
    [
        ("o/r", "/o/r/_weights", "REPLICATE_API_TOKEN"),
        ("huggingface.co/o/r", "/api/models/o/r/revision/main", "HF_TOKEN"),
        ("civitai:5@72", "/api/v1/model-versions/72", "CIVITAI_API_TOKEN"),
    ],
)
@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_authentication_error_names_the_token_variable(
    harness: LoaderHarness, text: str, path: str, variable: str, status: str
) -> None:
    harness.provider.respond(path, status=status)
    harness.configure(secrets=Secrets())
    error = str(await harness.load_error(text))
    assert variable in error
    assert "operator" in error
    harness.configure()
    error = str(await harness.load_error(text))
    assert variable in error
    assert "no access" in error


async def test_civitai_download_that_needs_login_names_the_token_variable(harness: LoaderHarness) -> None:
    text = publish_civitai_model(harness, WEIGHTS)
    harness.provider.respond("/login", body=b"<html>", Content_Type="text/html")
    location = "/login?reason=download-auth"
    harness.provider.respond("/api/download/models/72", status="307 Temporary Redirect", Location=location)
    harness.configure(secrets=Secrets())
    error = await harness.load_error(text)
    assert isinstance(error, FetchFailed)
    assert error.what == "civitai:5"
    assert "login" in error.why
    assert "CIVITAI_API_TOKEN" in error.why


async def test_file_with_wrong_checksum_is_rejected(harness: LoaderHarness) -> None:
    text = publish_hub_file(harness, WEIGHTS)
    for path in list(harness.file_host.responders):
        harness.publish(path, WEIGHTS[:-1] + b"?")
    error = await harness.load_error(text)
    assert isinstance(error, FetchFailed)
    assert error.what == "huggingface.co/o/r"
    assert "checksum" in error.why


async def test_host_that_becomes_private_between_attempts_is_rejected(harness: LoaderHarness) -> None:
    harness.file_host.respond("/x.safetensors", status="503 Service Unavailable")
    harness.configure(resolver=FakeResolver(rebinding_test=[["127.0.0.1"], ["169.254.169.254"]]))
    error = await harness.load_error(f"http://rebinding.test:{harness.file_host.port}/x.safetensors")
    assert "lora.fetch.allowed_hosts" in str(error)
    assert harness.file_host.requested_paths == ["/x.safetensors"]


@pytest.mark.parametrize(
    ("name", "word"),
    [("missing.safetensors", "no such file"), ("folder.safetensors", "cannot be read")],
)
async def test_unreadable_local_file_is_reported_without_its_folder(
    harness: LoaderHarness, name: str, word: str
) -> None:
    (harness.local_folder / "folder.safetensors").mkdir()
    error = await harness.load_error(str(harness.local_folder / name))
    assert isinstance(error, FetchFailed)
    assert error.what == name
    assert word in error.why
    assert str(harness.local_folder) not in str(error)


async def test_embedded_lora_does_not_need_lora_folders(
    harness: LoaderHarness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serve.model_specs.EMBEDDED_MODELS_FOLDER", tmp_path)
    monkeypatch.setattr("serve.lora.fetcher.EMBEDDED_MODELS_FOLDER", tmp_path)
    error = await harness.load_error("embedded:sketch")
    assert isinstance(error, FetchFailed)
    assert error.what == "embedded:sketch"
    assert "no such file" in error.why
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "sketch.safetensors").write_bytes(WEIGHTS)
    loaded = await harness.load("embedded:sketch")
    assert await harness.load_if_changed("embedded:sketch", loaded.revision) is None


async def test_link_out_of_the_folders_is_not_followed(harness: LoaderHarness, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(WEIGHTS)
    (harness.local_folder / "link.safetensors").symlink_to(outside)
    error = await harness.load_error(str(harness.local_folder / "link.safetensors"))
    assert isinstance(error, FetchFailed)
    assert error.what == "link.safetensors"
    assert "outside" in error.why
    (harness.local_folder / "real.safetensors").write_bytes(WEIGHTS)
    (harness.local_folder / "inside.safetensors").symlink_to(harness.local_folder / "real.safetensors")
    await harness.load(str(harness.local_folder / "inside.safetensors"))


async def test_oversized_local_file_is_rejected(harness: LoaderHarness) -> None:
    harness.configure(fetch={"max_bytes": 1000})
    assert "1000 bytes" in str(await harness.load_error(write_local_file(harness, WEIGHTS)))


async def test_full_disk_while_unpacking_is_logged_for_the_operator(
    harness: LoaderHarness, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    def raise_disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serve.lora.loader.extract_weights", raise_disk_full)
    error = await harness.load_error(publish_url(harness, WEIGHTS))
    assert isinstance(error, FetchFailed)
    assert "could not be stored" in error.why
    assert "No space left" not in error.why
    assert "No space left on device" in logs.text


async def test_cancelled_load_leaves_no_files(harness: LoaderHarness) -> None:
    server = harness.file_host
    url = server.respond_with("/x.safetensors", lambda writer: server.drip(writer, b"x" * 10_000, 0.001))
    task = asyncio.create_task(harness.load(url))
    while server.sent_bytes < 100_000:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert list(harness.scratch_folder.iterdir()) == []
