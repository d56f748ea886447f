"""Which URLs are recognized as this service's own files and outputs, and what is wrong with those that are."""

import io
from pathlib import Path

import pytest

from serve.access.caller import Caller
from serve.database.signing_keys import signing_key
from serve.errors import FetchFailed, StorageUnavailable
from serve.media.file_rows import FileDescription
from serve.media.file_store import FileStore
from serve.media.links import LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.net.presigned_urls import PresignedUrls
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.own_files import OwnFiles
from serve.predictions.store import PredictionStore
from serve.settings import FetchSettings, FileSettings, OutputSettings
from tests.app_factory import SqliteForTests
from tests.fakes import prediction
from tests.local_server import local_server

PUBLIC_URL = "https://example.org/flux"
OF_A = prediction("p1").model_copy(update={"owner": "a"})


class FakeBucket(ObjectStore):
    """A folder with URLs below `url`."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder.as_uri())
        self._url = url

    async def presigned_url(self, key: str, max_age_s: float) -> str | None:
        return f"{self._url}/{key}?signature=new"


class OwnFilesHarness:
    """Own files in a temporary folder, of a service at `public_url`."""

    def __init__(self, folder: Path, public_url: str = PUBLIC_URL, bucket_url: str | None = None) -> None:
        store = ObjectStore(folder.as_uri()) if bucket_url is None else FakeBucket(folder, bucket_url)
        database = SqliteForTests(folder / "predictions.db")
        links = LinkSigner(lambda: signing_key(database, "links"), 60)
        self.files = FileStore(FileSettings(), database, store)
        self.outputs = OutputStore(OutputSettings(), store, links)
        self.predictions = PredictionStore(database, ChangeNotifier(database), {OF_A.plan.pool: 1})
        self.own_files = OwnFiles(
            self.files, self.outputs, self.predictions, links, public_url, PresignedUrls(FetchSettings())
        )

    async def upload(self, content: bytes) -> str:
        """Stores an uploaded file and returns its id."""
        async with self.files.upload() as upload:
            description = FileDescription("a.safetensors", "application/octet-stream", {})
            return (await upload.save(io.BytesIO(content), description)).id

    async def read(self, url: str) -> bytes | None:
        return await self.own_files.read(url, max_bytes=1000)


@pytest.fixture
def harness(tmp_path: Path) -> OwnFilesHarness:
    return OwnFilesHarness(tmp_path)


@pytest.mark.parametrize("public_url", [PUBLIC_URL, f"{PUBLIC_URL}/", "https://example.org", "https://EXAMPLE.org/"])
@pytest.mark.parametrize(
    "path", ["/gallery/outputs/summer/boat.png", "/flux/gallery/outputs/summer/boat.png", "/cdn/v1/files/0123"]
)
async def test_other_path_on_the_same_host_is_not_an_own_file(tmp_path: Path, public_url: str, path: str) -> None:
    harness = OwnFilesHarness(tmp_path, public_url)
    url = f"https://example.org{path}"
    assert await harness.read(url) is None
    uploads = await harness.own_files.find({"image": url, "replicate_weights": url})
    assert (uploads.errors, uploads.loras) == ((), {})


@pytest.mark.parametrize("public_url", [PUBLIC_URL, f"{PUBLIC_URL}/"])
@pytest.mark.parametrize(
    "path",
    ["outputs/summer/boat.png", "links/1-x/outputs/summer/1/out-0.png", "v1/files/0123", "v1/files/0123/download"],
)
async def test_own_file_that_does_not_exist_is_an_error(tmp_path: Path, public_url: str, path: str) -> None:
    with pytest.raises(FetchFailed):
        await OwnFilesHarness(tmp_path, public_url).read(f"{PUBLIC_URL}/{path}")


@pytest.mark.parametrize("base", [PUBLIC_URL, "https://example.org", "https://example.org/other", "http://10.0.0.1:80"])
async def test_stored_file_or_output_is_recognized_at_any_url(harness: OwnFilesHarness, base: str) -> None:
    file_id = await harness.upload(b"weights")
    name = await harness.outputs.save("p1", 1, 0, b"image", "png")
    assert await harness.read(f"{base}/v1/files/{file_id}") == b"weights"
    for link in ("", "/links/1-x", "/bucket"):
        assert await harness.read(f"{base}{link}/outputs/p1/{name}") == b"image"


@pytest.mark.parametrize("field", ["replicate_weights", "extra_lora"])
async def test_unprintable_path_in_an_uploaded_archive_is_an_error(harness: OwnFilesHarness, field: str) -> None:
    url = f"{PUBLIC_URL}/v1/files/{await harness.upload(b'archive')}"
    uploads = await harness.own_files.find({field: f"{url}#a%00.safetensors"})
    assert [error.field for error in uploads.errors] == [field]
    assert "#" in uploads.errors[0].message
    assert uploads.loras == {}


@pytest.mark.parametrize(
    ("status", "host", "path", "accepted"),
    [
        ("206 Partial Content", "bucket", "outputs/p1/1/out-0.png", True),
        ("200 OK", "bucket", "outputs/p1/1/out-0.png", True),
        ("403 Forbidden", "bucket", "outputs/p1/1/out-0.png", False),
        ("302 Found", "bucket", "outputs/p1/1/out-0.png", False),
        # Valid there, but not a URL of this output in the bucket.
        ("200 OK", "bucket", "other/outputs/p1/1/out-0.png", False),
        ("200 OK", "other", "outputs/p1/1/out-0.png", False),
    ],
)
async def test_presigned_url_of_another_token_is_accepted_if_the_bucket_accepts_it(
    tmp_path: Path, status: str, host: str, path: str, accepted: bool
) -> None:
    async with local_server() as bucket, local_server() as other:
        server = {"bucket": bucket, "other": other}[host]
        harness = OwnFilesHarness(tmp_path, bucket_url=f"http://127.0.0.1:{bucket.port}/name")
        await harness.predictions.create(OF_A, attached=False)
        await harness.outputs.save("p1", 1, 0, b"image", "png")
        url = server.respond(f"/name/{path}", status)
        inputs = {"image": f"{url}?signature=old"}
        assert not (await harness.own_files.find(inputs, Caller("a"))).errors
        assert bucket.heads == other.heads == []
        errors = (await harness.own_files.find(inputs, Caller("b"))).errors
    assert [error.field for error in errors] == ([] if accepted else ["image"])


async def test_presigned_url_cannot_be_checked_while_the_bucket_is_away(tmp_path: Path) -> None:
    async with local_server() as bucket:
        url = bucket.respond("/outputs/p1/1/out-0.png", "503 Service Unavailable")
    harness = OwnFilesHarness(tmp_path, bucket_url=f"http://127.0.0.1:{bucket.port}")
    await harness.predictions.create(OF_A, attached=False)
    with pytest.raises(StorageUnavailable):
        await harness.own_files.find({"image": f"{url}?signature=old"}, Caller("b"))
