"""Previews: their steps, their likeness to the image, and that nothing else changes with them."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from serve.engine import device
from serve.engine.checkpoint import Checkpoint, load_checkpoint
from serve.engine.latent_preview import predict_clean_latents, preview_steps, synthetic_images
from serve.engine.request import GenerationRequest, ImageReady, PreviewReady
from serve.model_specs import ImageArray
from serve.settings import Settings
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.fake_device import FakeDevice
from tests.unit.engine.requests import Mode, RequestRecorder, make_request, run_request, run_requests
from tests.unit.engine.test_batch_executor import RunAhead


def previews_of(recorder: RequestRecorder) -> list[PreviewReady]:
    return [event for event in recorder.events if isinstance(event, PreviewReady)]


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [
        (28, 0, set()),
        (28, 1, {14}),
        (28, 3, {7, 14, 21}),
        (28, 8, {3, 6, 9, 12, 15, 18, 21, 24}),
        (4, 8, {1, 2, 3}),
        (5, 3, {1, 2, 3}),
        (1, 3, set()),
        (0, 3, set()),
    ],
)
def test_steps_with_previews_are_spread_evenly_without_the_last(steps: int, count: int, expected: set[int]) -> None:
    assert preview_steps(steps, count) == expected


def test_each_step_has_at_most_one_preview() -> None:
    for steps in range(2, 51):
        for count in range(1, steps + 3):
            assert len(preview_steps(steps, count)) == min(count, steps - 1)
            assert preview_steps(steps, count) <= set(range(1, steps))


def test_clean_latents_are_those_that_the_velocity_leads_to() -> None:
    clean, noise = torch.randn(2, 1, 24, 64, generator=torch.Generator().manual_seed(1)).unbind()
    at = {sigma: (1 - sigma) * clean + sigma * noise for sigma in (0.9, 0.6)}
    assert torch.allclose(predict_clean_latents(at[0.9], at[0.6], 0.9, 0.6), clean, atol=1e-5)


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    settings = Settings()
    return load_checkpoint(settings.models["schnell"], settings.pools["schnell"], None)


PROMPTS = ("a red sailboat", "a bicycle in green", "a yellow sun")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_previews_of_the_embedded_model_resemble_the_image(embedded: Checkpoint, prompt: str) -> None:
    request = GenerationRequest(prompt, (256, 256), steps=4, seeds=(1,), previews=3)
    recorder = run_request(embedded, request)
    (image,) = recorder.pixels
    previews = previews_of(recorder)
    assert [(each.step, each.total, each.pixels.shape) for each in previews] == [
        (step, 4, (32, 32, 3)) for step in (1, 2, 3)
    ]
    assert psnr(previews[-1].pixels, shrink(image)) > 18
    assert correlation(previews[-1].pixels, shrink(image)) > 0.8


def shrink(image: ImageArray) -> ImageArray:
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX))


def psnr(first: ImageArray, second: ImageArray) -> float:
    return float(-10 * np.log10(np.mean((first / 255 - second / 255) ** 2)))


def correlation(first: ImageArray, second: ImageArray) -> float:
    return float(np.corrcoef(first.mean(axis=2).ravel(), second.mean(axis=2).ravel())[0, 1])


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
def test_images_are_the_same_to_the_bit_with_previews(checkpoint: Checkpoint, mode: Mode) -> None:
    with_previews = run_request(checkpoint, make_request(mode, seeds=(7, 8), previews=2))
    without = run_request(checkpoint, make_request(mode, seeds=(7, 8)))
    assert {each.index for each in previews_of(with_previews)} == {0, 1}
    assert previews_of(without) == []
    assert np.array_equal(with_previews.pixels, without.pixels)
    assert all(torch.equal(with_previews.latents[index], without.latents[index]) for index in (0, 1))


def test_only_images_of_requests_with_previews_have_them(checkpoint: Checkpoint) -> None:
    _, (first, second) = run_requests(checkpoint, [(0, make_request(previews=3)), (0, make_request(seeds=(9,)))])
    assert len(previews_of(first)) == 3
    assert previews_of(second) == []


def test_where_the_image_is_kept_the_preview_is_that_of_the_input_image(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "float32")
    request = make_request("inpainting", size=(256, 64), strength=1.0, previews=3)
    first, *_, last = previews_of(run_request(checkpoint, request))
    kept = slice(24, None)
    difference = np.abs(first.pixels.astype(int) - last.pixels)
    assert difference[:, kept].max() <= 1
    assert difference[:, :8].max() > 1


@pytest.mark.parametrize("size", [(96, 64), (100, 70), (16, 16)])
def test_preview_has_the_shape_of_the_image(checkpoint: Checkpoint, size: tuple[int, int]) -> None:
    preview, *_ = previews_of(run_request(checkpoint, make_request(size=size, previews=1)))
    assert preview.pixels.shape == (round(size[1] / 8), round(size[0] / 8), 3)
    assert preview.pixels.dtype == np.uint8


def test_synthetic_images_are_always_the_same() -> None:
    first, second = synthetic_images(128), synthetic_images(128)
    assert all(np.array_equal(each, other) for each, other in zip(first, second, strict=True))
    assert len({each.tobytes() for each in first}) == len(first)


def test_previews_follow_their_step_and_nothing_waits_for_them(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []
    for previews in (0, 3):
        fake = FakeDevice()
        with monkeypatch.context() as patches:
            fake.install(patches)
            run = RunAhead(checkpoint, fake)
            recorder = run.add(previews=previews)
            run.run_to_end()
        logs.append((fake.log, fake.clock.elapsed_s))
    assert logs[0] == logs[1]
    names = [(type(event).__name__, event.step) for event in recorder.events if hasattr(event, "step")]
    assert names == [
        *(pair for step in (1, 2, 3) for pair in (("StepDone", step), ("PreviewReady", step))),
        ("StepDone", 4),
    ]
    assert isinstance(recorder.events[-2], ImageReady)


def test_copy_to_the_host_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Values:
        def to(self, *arguments: Any, **options: Any) -> Any:
            return arguments, options

    values: Any = Values()
    assert device.queue_to_host(values) == (("cpu",), {"non_blocking": True})
