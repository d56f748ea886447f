"""OpenAI's official Python client against the application on a loopback port."""

import asyncio
import base64
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from serve.events import ImageFinished, ImageFlagged, Started
from serve.predictions.runner import Pool
from serve.settings import PoolSettings, Settings
from tests.app_factory import make_app
from tests.drawing_pool import DrawingPool
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakePool, image_finished
from tests.images import png
from tests.markdown import blocks

ONE_IN_FLIGHT = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
TWO_IMAGES = (Started(), image_finished(0), image_finished(1), DONE)
IMAGE = png(320, 256)


@asynccontextmanager
async def client(
    pool: Pool, settings: Settings | None = None, token: str = "a token"
) -> AsyncGenerator[AsyncOpenAI, None]:
    app = make_app(pool, settings, token="a token")
    async with (
        app.listening() as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as openai_client,
    ):
        yield openai_client


def mask_file() -> bytes:
    file = io.BytesIO()
    mask = Image.new("RGBA", (320, 256), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 100, 256))
    mask.save(file, "png")
    return file.getvalue()


async def test_generate_returns_images() -> None:
    async with client(FakePool(TWO_IMAGES)) as openai_client:
        response = await openai_client.images.generate(
            model="gpt-image-1", prompt="a cat", n=2, size="1536x1024", quality="low", output_format="webp"
        )
    assert response.data is not None
    assert [base64.b64decode(image.b64_json or "") for image in response.data] == [WEBP, WEBP]
    assert (response.size, response.output_format, response.background) == ("1440x960", "webp", "opaque")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


async def test_response_format_of_dall_e_is_a_url() -> None:
    async with client(FakePool(ONE_IMAGE)) as openai_client:
        response = await openai_client.images.generate(model="dall-e-3", prompt="a cat", style="vivid", quality="hd")
    assert response.data is not None
    assert (response.data[0].url or "").startswith("data:image/png;base64,")


async def test_extra_body_has_our_inputs() -> None:
    pool = FakePool(ONE_IMAGE)
    async with client(pool) as openai_client:
        await openai_client.images.generate(
            prompt="a cat", extra_body={"num_inference_steps": 3, "seed": 7, "guidance_scale": 2.5}
        )
        await openai_client.images.edit(
            image=IMAGE, prompt="a cat", extra_body={"prompt_strength": 0.5, "seed": 8, "go_fast": True}
        )
    generation, edit = (plan for plan, _, _ in pool.calls)
    assert (generation.steps, generation.seeds, generation.guidance) == (3, (7,), 2.5)
    assert (edit.strength, edit.seeds, edit.pool) == (0.5, (8,), "dev-fp8")


async def test_edit_with_a_mask(tmp_path: Path) -> None:
    (tmp_path / "boat.png").write_bytes(IMAGE)
    pool = FakePool(ONE_IMAGE)
    async with client(pool) as openai_client:
        with (tmp_path / "boat.png").open("rb") as image:
            response = await openai_client.images.edit(
                model="gpt-image-1", image=image, mask=("mask.png", mask_file()), prompt="a cat", input_fidelity="high"
            )
        await openai_client.images.edit(image=[IMAGE], prompt="a cat", size="512x512")
    assert response.size == "320x256"
    mask = pool.calls[0][2]
    assert mask is not None
    assert (mask[:, :100] == 255).all()
    assert (mask[:, 100:] == 0).all()
    assert pool.calls[1][0].size == (512, 512)


async def test_several_images_are_refused() -> None:
    async with client(FakePool(ONE_IMAGE)) as openai_client:
        with pytest.raises(openai.BadRequestError) as raised:
            await openai_client.images.edit(image=[IMAGE, IMAGE], prompt="a cat")
    assert (raised.value.param, raised.value.type) == ("image", "invalid_request_error")


async def test_generations_and_edits_are_streamed() -> None:
    async with client(FakePool(TWO_IMAGES)) as openai_client:
        generated = [
            event
            async for event in await openai_client.images.generate(
                prompt="a cat", n=2, stream=True, partial_images=2, model="gpt-image-1"
            )
        ]
        edited = [
            event async for event in await openai_client.images.edit(image=IMAGE, prompt="a cat", n=2, stream=True)
        ]
    assert [event.type for event in generated] == ["image_generation.completed"] * 2
    assert [event.type for event in edited] == ["image_edit.completed"] * 2
    assert generated[0].type == "image_generation.completed"
    assert base64.b64decode(generated[0].b64_json) == WEBP
    assert generated[0].usage.total_tokens > 0


@pytest.mark.parametrize(("partial_images", "expected"), [(0, 0), (1, 1), (3, 3)])
async def test_partial_images_are_streamed(partial_images: int, expected: int) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with client(pool) as openai_client, asyncio.timeout(30):
        stream = await openai_client.images.generate(
            prompt="a cat",
            stream=True,
            partial_images=partial_images,
            size="512x256",
            output_format="jpeg",
            extra_body={"num_inference_steps": 8},
        )
        events: list[Any] = []
        if not expected:
            pool.may_finish.set()
        async for event in stream:
            events.append(event)
            pool.may_finish.set()
    *partial, completed = events
    assert pool.plans[0].previews == expected
    assert completed.type == "image_generation.completed"
    assert {event.type for event in partial} <= {"image_generation.partial_image"}
    # Several quick previews may be sent as one.
    assert bool(partial) == bool(expected)
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    for event in partial:
        assert (event.output_format, event.size, event.background) == ("jpeg", "512x256", "opaque")
        with Image.open(io.BytesIO(base64.b64decode(event.b64_json))) as image:
            assert (image.format, image.size) == ("JPEG", (512, 256))


async def test_partial_images_of_an_edit_are_streamed() -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with client(pool) as openai_client, asyncio.timeout(30):
        stream = await openai_client.images.edit(image=IMAGE, prompt="a cat", stream=True, partial_images=1)
        types = []
        async for event in stream:
            types.append(event.type)
            pool.may_finish.set()
    assert types == ["image_edit.partial_image", "image_edit.completed"]


async def test_error_in_a_stream_is_raised() -> None:
    async with client(FakePool((Started(), ImageFlagged(0), DONE))) as openai_client:
        stream = await openai_client.images.generate(prompt="a cat", stream=True)
        with pytest.raises(openai.APIError) as raised:
            [event async for event in stream]
    assert raised.value.code == "moderation_blocked"


async def test_flagged_image_is_a_bad_request() -> None:
    async with client(FakePool((Started(), ImageFlagged(0), DONE))) as openai_client:
        with pytest.raises(openai.BadRequestError) as raised:
            await openai_client.images.generate(prompt="a cat")
    assert (raised.value.code, raised.value.type) == ("moderation_blocked", "image_generation_user_error")


async def test_invalid_parameter_is_a_bad_request() -> None:
    async with client(FakePool(ONE_IMAGE)) as openai_client:
        with pytest.raises(openai.BadRequestError) as raised:
            await openai_client.images.generate(prompt="a cat", extra_body={"num_inference_steps": 99})
    assert raised.value.param == "num_inference_steps"


async def test_unknown_model_is_not_found() -> None:
    async with client(FakePool(ONE_IMAGE)) as openai_client:
        with pytest.raises(openai.NotFoundError) as raised:
            await openai_client.images.generate(prompt="a cat", model="gpt-6")
    assert raised.value.code == "model_not_found"


async def test_models_are_listed_and_read() -> None:
    async with client(FakePool(ONE_IMAGE)) as openai_client:
        listed = [model async for model in openai_client.models.list()]
        model = await openai_client.models.retrieve("black-forest-labs/flux-dev-lora")
        with pytest.raises(openai.NotFoundError):
            await openai_client.models.retrieve("gpt-6")
    assert [each.id for each in listed] == [each.full_name for each in Settings().served_models]
    assert (model.id, model.object, model.owned_by) == (listed[0].id, "model", "black-forest-labs")
    assert model.created > 0


async def test_wrong_token_is_an_authentication_error() -> None:
    async with client(FakePool(ONE_IMAGE), token="wrong") as openai_client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await openai_client.images.generate(prompt="a cat")
    assert raised.value.code == "invalid_api_key"


async def test_full_pool_is_a_rate_limit_error() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    async with client(pool, ONE_IN_FLIGHT) as openai_client:
        first = asyncio.create_task(openai_client.images.generate(prompt="a cat"))
        while not pool.calls:
            await asyncio.sleep(0.001)
        with pytest.raises(openai.RateLimitError) as raised:
            await openai_client.images.generate(prompt="a cat")
        assert raised.value.response.headers["Retry-After"] == "10"
        pool.may_start.set()
        await first


async def test_client_retries_a_full_pool_until_it_is_free() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    async with client(pool, ONE_IN_FLIGHT) as openai_client:
        first = asyncio.create_task(openai_client.images.generate(prompt="a cat"))
        while not pool.calls:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.2, pool.may_start.set)
        second = await openai_client.with_options(max_retries=3).images.generate(prompt="a cat")
        await first
    assert second.data


@pytest.mark.parametrize(
    "text", [block for block in blocks("python") if "from openai import OpenAI" in str(block.values[0])]
)
async def test_readme_example_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pool = FakePool((Started(), ImageFinished(0, IMAGE), DONE))
    app = make_app(pool)
    async with app.listening() as url:
        assert "http://127.0.0.1:8000" in text
        code = compile(text.replace("http://127.0.0.1:8000", url), "README.md", "exec")
        await asyncio.to_thread(exec, code, {})
    assert len(pool.calls) == text.count("client.images.")
    assert (tmp_path / "boat.png").read_bytes() == IMAGE
