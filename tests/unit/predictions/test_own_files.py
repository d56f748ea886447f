"""Which URLs are recognized as this service's own files and outputs, and what is wrong with those that are."""

import io
from pathlib import Path

import pytest

from serve.database.signing_keys import signing_key
from serve.errors import FetchFailed
from serve.media.file_rows import FileDescription
from serve.media.file_store import FileStore
from serve.media.links import LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.own_files import OwnFiles
from serve.predictions.store import PredictionStore
from serve.settings import FileSettings, OutputSettings
from tests.app_factory import SqliteForTests

PUBLIC_URL = "https://example.org/flux"


class OwnFilesHarness:
    """Own files in a temporary folder, of a service at `public_url`."""

    def __init__(self, folder: Path, public_url: str = PUBLIC_URL) -> None:
        store, database = ObjectStore(folder.as_uri()), SqliteForTests(folder / "predictions.db")
        links = LinkSigner(lambda: signing_key(database, "links"), 60)
        self.files = FileStore(FileSettings(), database, store)
        self.outputs = OutputStore(OutputSettings(), store, links)
        self.predictions = PredictionStore(database, ChangeNotifier(database), {"p": 1})
        self.own_files = OwnFiles(self.files, self.outputs, self.predictions, links, public_url)

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
