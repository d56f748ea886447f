"""Serving finished images as files."""

import pytest

from serve.settings import OutputSettings, Settings
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, WEBP, FakePool

SETTINGS = Settings(outputs=OutputSettings(public_url="https://flux.example", max_age_s=600))


async def test_output_url_serves_the_image() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    async with app.http as client:
        created = await client.post("/v1/predictions", json={"input": {"prompt": "a cat"}}, headers={"Prefer": "wait"})
        [url] = created.json()["output"]
        file = await client.get(url)
    assert (file.status_code, file.content) == (200, WEBP)
    assert file.headers["Content-Type"] == "image/webp"
    assert file.headers["Cache-Control"] == "private, max-age=600, immutable"
    assert file.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/outputs/unknown/out-0.webp", "/outputs/../etc/passwd", "/outputs/x/..%2f..%2fetc%2fpasswd", "/outputs/x/"],
)
async def test_other_paths_are_not_found(path: str) -> None:
    async with make_app(FakePool(ONE_IMAGE), SETTINGS).http as client:
        missing = await client.get(path)
    assert missing.status_code == 404
    assert missing.json()["detail"]
