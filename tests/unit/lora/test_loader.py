"""The whole way of a LoRA, from a caller's text to weights, for each source and each way in which it can go wrong."""

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
from serve.lora.convert import HEADER_KEY
from serve.lora.loader import LoadedLora, LoraLoader
from serve.lora.parse import parse_reference
from serve.lora.reference import ReplicateModel
from serve.settings import Secrets
from tests.local_server import LocalServer, Names
from tests.logs import Logs
from tests.unit.lora import fake_providers, lora_files
from tests.unit.lora.fake_providers import SECRETS, PublishedFile, asked_with, settings_for
from tests.unit.lora.geometries import TINY
from tests.unit.lora.lora_files import Tensors
from tests.unit.lora.test_archive import tar_of, zip_of
from tests.unit.lora.test_convert import assert_same
from tests.unit.net.test_url_fetcher import TRUSTS_NOBODY

NAMES = lora_files.bfl_names(range(2), range(2), outside=True)
PAIRS = lora_files.tiny_pairs(TINY)
TENSORS = {name: tensor.clone() for name, tensor in lora_files.diffusers(PAIRS).items()}
WEIGHTS = safetensors.torch.save(TENSORS)
TAR = tar_of(("output/flux_train_replicate/lora.safetensors", WEIGHTS))
QUERY = "transformer_blocks.0.attn.to_q"


class Bench:
    """A loader whose sites are `site` and whose stores are `store`, with a folder of its own."""

    def __init__(self, site: LocalServer, store: LocalServer, folder: Path) -> None:
        self.site, self.store = site, store
        self.scratch, self.local = folder / "scratch", folder / "local"
        self.scratch.mkdir()
        self.local.mkdir()
        self._loader: LoraLoader | None = None
        self.set_up()

    def set_up(self, names: Names | None = None, secrets: Secrets = SECRETS, **settings: Any) -> None:
        self.close()
        self.settings = settings_for(self.site, self.store, folders=[str(self.local)], **settings)
        self._loader = LoraLoader(self.settings, secrets, self.scratch, names, TRUSTS_NOBODY)

    def close(self) -> None:
        if self._loader:
            self._loader.close()

    async def load(self, text: str, known_revision: str | None = None, **arguments: Any) -> LoadedLora | None:
        assert self._loader
        reference = parse_reference(text, self.settings)
        loaded = await self._loader.load(reference, TINY, known_revision, **arguments)
        assert list(self.scratch.iterdir()) == []
        return loaded

    async def loaded(self, text: str) -> LoadedLora:
        loaded = await self.load(text)
        assert loaded is not None
        return loaded

    async def failure(self, text: str) -> PredictionFailed:
        with pytest.raises(PredictionFailed) as caught:
            await self.load(text)
        assert list(self.scratch.iterdir()) == []
        return caught.value

    def publish(self, path: str, body: bytes, **more: Any) -> str:
        return PublishedFile(self.store, path, body, **more).url


@pytest.fixture
async def bench(site: LocalServer, store: LocalServer, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(site, store, tmp_path)
    yield bench
    bench.close()


def on_hub(bench: Bench, body: bytes) -> str:
    fake_providers.publish_on_hub(bench.site, bench.store, "o/r", {"README.md": b"#", "x.safetensors": body})
    return "huggingface.co/o/r"


def on_hub_packed(bench: Bench, body: bytes) -> str:
    fake_providers.publish_on_hub(bench.site, bench.store, "o/r", {"trained.tar": tar_of(("lora.safetensors", body))})
    return "https://huggingface.co/o/r/blob/main/trained.tar"


def on_civitai(bench: Bench, body: bytes) -> str:
    version = fake_providers.civitai_version(72, fake_providers.civitai_file(body))
    fake_providers.publish_on_civitai(bench.site, bench.store, 5, [version], body)
    return "civitai.com/models/5/a-lora"


def on_replicate(bench: Bench, body: bytes) -> str:
    packed = tar_of(("output/config.yaml", b"x: 1"), ("output/flux_train_replicate/lora.safetensors", body))
    fake_providers.publish_on_replicate(
        bench.site, bench.store, ReplicateModel("fofr", "flux-x"), packed, f'"{len(body)}"'
    )
    return "fofr/flux-x"


def at_a_version_on_replicate(bench: Bench, body: bytes) -> str:
    model = ReplicateModel("fofr", "flux-x", "d592f697")
    fake_providers.publish_on_replicate(bench.site, bench.store, model, tar_of(("lora.safetensors", body)))
    return "fofr/flux-x:d592f697"


def in_a_bucket(bench: Bench, body: bytes) -> str:
    PublishedFile(bench.site, "/studio-loras/an%20ink.safetensors", body, f'"{len(body)}"')
    return "s3://studio-loras/an ink.safetensors"


def at_a_url(bench: Bench, body: bytes) -> str:
    return f"{bench.publish('/a/X.SafeTensors', body, tag=chr(34) + str(len(body)) + chr(34))}?signature=mine"


def packed_at_a_url(bench: Bench, body: bytes) -> str:
    packed = gzip.compress(tar_of(("lora.safetensors", body)))
    return bench.publish("/lora.tar.gz", packed, tag=f'"{len(body)}"')


def zipped_at_a_url(bench: Bench, body: bytes) -> str:
    return bench.publish("/lora.zip", zip_of(("lora.safetensors", body)), tag=f'"{len(body)}"')


def in_a_folder(bench: Bench, body: bytes) -> str:
    path = bench.local / "ink.safetensors"
    path.write_bytes(body)
    os.utime(path, ns=(len(body), len(body)))
    return str(path)


def in_the_request(bench: Bench, body: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(body).decode()}"


def packed_in_the_request(bench: Bench, body: bytes) -> str:
    packed = tar_of(("lora.safetensors", body))
    return f"data:application/x-tar;base64,{base64.b64encode(packed).decode()}"


Publish = Callable[[Bench, bytes], str]
SOURCES: tuple[Publish, ...] = (
    on_hub,
    on_hub_packed,
    on_civitai,
    on_replicate,
    at_a_version_on_replicate,
    in_a_bucket,
    at_a_url,
    packed_at_a_url,
    zipped_at_a_url,
    in_a_folder,
    in_the_request,
    packed_in_the_request,
)
UNNAMED = (in_the_request, packed_in_the_request)
"""What comes along needs no asking whether it is the same."""


@pytest.mark.parametrize("publish", SOURCES)
async def test_a_lora_of_every_source_becomes_weights(bench: Bench, publish: Publish) -> None:
    loaded = await bench.loaded(publish(bench, WEIGHTS))
    assert_same(loaded.weights.transformer, PAIRS)
    assert loaded.weights.unapplied == ()
    assert loaded.revision
    assert loaded.fetched_bytes > 0.5 * len(WEIGHTS)
    assert 0 < loaded.fetch_s < 60
    assert 0 < loaded.check_s < 60


@pytest.mark.parametrize("publish", [source for source in SOURCES if source not in UNNAMED])
async def test_what_is_still_the_same_is_not_loaded_again(bench: Bench, publish: Publish) -> None:
    text = publish(bench, WEIGHTS)
    first = await bench.loaded(text)
    assert await bench.load(text, first.revision) is None
    if publish is at_a_version_on_replicate:
        return
    publish(bench, safetensors.torch.save(lora_files.diffusers({QUERY: PAIRS[QUERY]})))
    second = await bench.load(text, first.revision)
    assert second is not None
    assert second.revision != first.revision
    assert second.weights.transformer.keys() == {QUERY}


async def test_only_sites_are_told_their_credentials(bench: Bench) -> None:
    for publish in (on_hub, on_civitai, on_replicate, at_a_url, in_a_bucket):
        await bench.loaded(publish(bench, WEIGHTS))
    told = {path.split("?")[0]: value for path, value in asked_with(bench.site, "authorization")}
    assert {path for path, value in told.items() if value is None} == {"/studio-loras/an%20ink.safetensors"}
    assert told["/fofr/flux-x/_weights"] == f"Bearer {fake_providers.REPLICATE_TOKEN}"
    assert told["/api/v1/models/5"] == told["/api/download/models/72"] == f"Bearer {fake_providers.CIVITAI_TOKEN}"
    assert {value for path, value in told.items() if "/o/r" in path} == {f"Bearer {fake_providers.HUB_TOKEN}"}
    assert {value for _, value in asked_with(bench.store, "authorization")} == {None}


async def test_progress_of_a_download_is_told(bench: Bench) -> None:
    told: list[tuple[int, int | None]] = []
    await bench.load(at_a_url(bench, WEIGHTS), progress=lambda *now: told.append(now))
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS))


def with_strength(strength: Mapping[str, Any]) -> bytes:
    told = {f"transformer.{name}": value for name, value in strength.items()}
    return safetensors.torch.save(TENSORS, {HEADER_KEY: json.dumps(told)})


async def test_strengths_in_the_header_count(bench: Bench) -> None:
    loaded = await bench.loaded(at_a_url(bench, with_strength({"lora_alpha": 6, "r": 3})))
    assert loaded.weights.transformer[QUERY].scale == 2


@pytest.mark.parametrize("packed", [False, True])
async def test_strengths_beside_the_weights_count(bench: Bench, packed: bool) -> None:
    files = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": b'{"lora_alpha": 6, "r": 3}'}
    if packed:
        text = bench.publish("/x.zip", zip_of(*files.items()))
    else:
        fake_providers.publish_on_hub(bench.site, bench.store, "o/r", files)
        text = "huggingface.co/o/r"
    assert (await bench.loaded(text)).weights.transformer[QUERY].scale == 2


@asynccontextmanager
async def still_working(bench: Bench) -> AsyncIterator[None]:
    """What worked before works after whatever is done in between."""
    text = bench.publish("/good.safetensors", WEIGHTS)
    before = await bench.loaded(text)
    yield
    after = await bench.loaded(text)
    assert bytes(after.block) == bytes(before.block)


def rank_4096() -> bytes:
    return safetensors.torch.save(lora_files.diffusers({QUERY: (torch.ones(4096, 16), torch.ones(16, 4096))}))


def not_numbers() -> bytes:
    down, up = PAIRS[QUERY]
    return safetensors.torch.save(lora_files.diffusers({QUERY: (down, torch.full_like(up, torch.nan))}))


def for_sdxl() -> bytes:
    pairs = {"input_blocks.4.1.transformer_blocks.0.attn2.to_k": (torch.ones(2, 2048), torch.ones(640, 2))}
    return safetensors.torch.save(lora_files.flat(pairs, "lora_unet_"))


def for_a_wider_model() -> bytes:
    wide: Tensors = lora_files.diffusers({QUERY: (torch.ones(2, 3072), torch.ones(3072, 2))})
    return safetensors.torch.save(wide)


REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a page": ("/x.safetensors", lambda: b"<!doctype html><html>", "the file is a web page; give a .safetensors file"),
    "an error in JSON": ("/x.safetensors", lambda: b'{"error":"no"}', "the file is a text in JSON; give"),
    "a pickle": ("/x.safetensors", lambda: b"\x80\x02}q\0.", "the file is a pickle, which could run code here"),
    "nothing": ("/x.safetensors", lambda: b"", "the file is empty; give a .safetensors file"),
    "cut off": ("/x.safetensors", lambda: WEIGHTS[:-1000], "the file is cut off: it should have"),
    "an archive cut off": ("/x.tar", lambda: TAR[: len(TAR) // 2], "the archive is damaged or cut off"),
    "an empty archive": ("/x.tar", tar_of, "the archive is empty: it should hold one .safetensors file"),
    "two weights": (
        "/x.zip",
        lambda: zip_of(("one.safetensors", WEIGHTS), ("two.safetensors", WEIGHTS)),
        "the archive holds two weights files, one.safetensors and two.safetensors; give the link of one",
    ),
    "a bomb": ("/x.zip", lambda: zip_of(("a.safetensors", bytes(3_000_000))), "it unpacks to more than 2000000 bytes"),
    "a LoRA for SDXL": ("/x.safetensors", for_sdxl, "it is made for Stable Diffusion, not for FLUX.1"),
    "a LoRA for a wider model": (
        "/x.safetensors",
        for_a_wider_model,
        "it is made for another model, whose weights are",
    ),
    "rank 4096": ("/x.safetensors", rank_4096, "its rank is 4096, at most 256 is taken"),
    "NaN": ("/x.safetensors", not_numbers, "it holds values that are no numbers: NaN or infinite"),
    "many tensors": (
        "/x.safetensors",
        lambda: safetensors.torch.save({str(number): torch.zeros(0) for number in range(501)}),
        "it has 501 tensors, at most 500 are taken",
    ),
    "DoRA": (
        "/x.safetensors",
        lambda: safetensors.torch.save(TENSORS | {f"transformer.{QUERY}.dora_scale": torch.ones(16, 1)}),
        "it is made with DoRA",
    ),
}


@pytest.mark.parametrize(("path", "body", "why"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_lora_for_this_model_is_refused_alone(
    bench: Bench, path: str, body: Callable[[], bytes], why: str
) -> None:
    bench.set_up(max_tensors=500, fetch={"max_bytes": 2_000_000})
    async with still_working(bench):
        url = bench.publish(path, body())
        error = await bench.failure(f"{url}?signature=secret")
    assert isinstance(error, InvalidLora)
    assert str(error).startswith(f"cannot use the LoRA {url}: {why}")
    assert "secret" not in str(error)


async def test_a_lora_that_is_not_there_fails_alone(bench: Bench) -> None:
    for server in (bench.site, bench.store):
        server.answer("/o/r/_weights", status="404 Not Found")
        server.answer("/x.safetensors", status="404 Not Found")
    async with still_working(bench):
        error = await bench.failure("o/r")
        assert str(error) == "could not fetch o/r: its server answered 404 Not Found; check how it is written"
        url = f"http://127.0.0.1:{bench.store.port}/x.safetensors"
        error = await bench.failure(url)
        assert str(error) == f"could not fetch {url}: its server answered 404 Not Found; check how it is written"


@pytest.mark.parametrize(
    ("text", "path", "variable"),
    [
        ("o/r", "/o/r/_weights", "REPLICATE_API_TOKEN"),
        ("huggingface.co/o/r", "/api/models/o/r/revision/main", "HF_TOKEN"),
        ("civitai:5@72", "/api/v1/model-versions/72", "CIVITAI_API_TOKEN"),
    ],
)
@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_a_missing_token_is_named(bench: Bench, text: str, path: str, variable: str, status: str) -> None:
    bench.site.answer(path, status=status)
    bench.set_up(secrets=Secrets())
    assert f"the operator of this service can set {variable}" in str(await bench.failure(text))
    bench.set_up()
    assert f"the account of this service's {variable} may not read it" in str(await bench.failure(text))


async def test_a_gated_download_of_civitai_names_the_token(bench: Bench) -> None:
    text = on_civitai(bench, WEIGHTS)
    bench.site.answer("/login", body=b"<html>", Content_Type="text/html")
    bench.site.answer(
        "/api/download/models/72", status="307 Temporary Redirect", Location="/login?reason=download-auth"
    )
    bench.set_up(secrets=Secrets())
    error = await bench.failure(text)
    assert str(error) == (
        "could not fetch civitai:5: its server asks to sign in; it needs an account at CivitAI: "
        "the operator of this service can set CIVITAI_API_TOKEN"
    )


async def test_a_file_that_is_not_the_one_that_its_site_lists_is_refused(bench: Bench) -> None:
    text = on_hub(bench, WEIGHTS)
    for path in list(bench.store.answers):
        bench.publish(path, WEIGHTS[:-1] + b"?")
    error = await bench.failure(text)
    assert str(error) == ("could not fetch huggingface.co/o/r: its checksum is not the one that Hugging Face lists")


async def test_a_name_that_turns_private_between_attempts_is_refused(bench: Bench) -> None:
    bench.store.answer("/x.safetensors", status="503 Service Unavailable")
    bench.set_up(names=Names(rebinding_test=[["127.0.0.1"], ["169.254.169.254"]]))
    error = await bench.failure(f"http://rebinding.test:{bench.store.port}/x.safetensors")
    assert "its address is not public; the operator can allow named hosts by lora.fetch.allowed_hosts" in str(error)
    assert bench.store.asked == ["/x.safetensors"]


@pytest.mark.parametrize(
    ("name", "why"),
    [("missing.safetensors", "there is no such file"), ("folder.safetensors", "it cannot be read")],
)
async def test_a_local_file_that_cannot_be_read_fails_without_its_folder(bench: Bench, name: str, why: str) -> None:
    (bench.local / "folder.safetensors").mkdir()
    error = await bench.failure(str(bench.local / name))
    assert str(error) == f"could not fetch {name}: {why}"


async def test_a_lora_that_comes_along_needs_no_folder_of_the_operators(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serve.model_specs.EMBEDDED_MODELS_FOLDER", tmp_path)
    monkeypatch.setattr("serve.lora.lora_fetcher.EMBEDDED_MODELS_FOLDER", tmp_path)
    assert str(await bench.failure("embedded:sketch")) == "could not fetch embedded:sketch: there is no such file"
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "sketch.safetensors").write_bytes(WEIGHTS)
    loaded = await bench.loaded("embedded:sketch")
    assert await bench.load("embedded:sketch", loaded.revision) is None


async def test_a_link_out_of_the_folders_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(WEIGHTS)
    (bench.local / "link.safetensors").symlink_to(outside)
    error = await bench.failure(str(bench.local / "link.safetensors"))
    assert str(error) == "could not fetch link.safetensors: it is a link that leads out of the folders of LoRAs"
    (bench.local / "real.safetensors").write_bytes(WEIGHTS)
    (bench.local / "inside.safetensors").symlink_to(bench.local / "real.safetensors")
    await bench.loaded(str(bench.local / "inside.safetensors"))


async def test_a_local_file_over_the_limit_is_refused(bench: Bench) -> None:
    bench.set_up(fetch={"max_bytes": 1000})
    assert "it has more than 1000 bytes" in str(await bench.failure(in_a_folder(bench, WEIGHTS)))


async def test_a_full_disk_while_unpacking_is_told_to_the_operator(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serve.lora.loader.extract_weights", full)
    error = await bench.failure(at_a_url(bench, WEIGHTS))
    assert isinstance(error, FetchFailed)
    assert error.why == "it could not be stored; the operator's log has the cause"
    assert "No space left on device" in logs.text


async def test_a_cancelled_load_leaves_nothing(bench: Bench) -> None:
    url = bench.store.behave("/x.safetensors", lambda writer: bench.store.drip(writer, b"x" * 10_000, 0.001))
    task = asyncio.create_task(bench.load(url))
    while bench.store.sent_bytes < 100_000:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert list(bench.scratch.iterdir()) == []
