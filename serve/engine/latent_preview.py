"""Small previews of unfinished images: a linear map from predicted clean latents to colours, fitted to the VAE."""

import colorsys
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from serve.engine import device
from serve.engine.latents import LatentGrid, LatentSpace, unpack
from serve.engine.request_state import ImageState, RequestState
from serve.model_specs import ImageArray, Size

PIXELS_PER_PREVIEW_PIXEL = 8
"""On each side. A VAE with a larger stride has several pixels of a preview for each of its latents."""
KERNEL = 3
"""Side of the square of latents that a pixel depends on; with it, lines are sharper than with a single one."""
FIT_LATENTS = 16
"""Side of the images that the map is fitted to, in latents."""
FIT_SEED = 1


def preview_steps(steps: int, count: int) -> frozenset[int]:
    """The steps, counted from 1, after which a preview is made: up to `count`, spread evenly, and never the last."""
    count = max(0, min(count, steps - 1))
    return frozenset(number * steps // (count + 1) for number in range(1, count + 1))


def predict_clean_latents(before: Tensor, after: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """The latents without noise that the last step predicts, in float32: `before - sigma * velocity`.

    Where inpainting keeps the input image, they are those of the input image.
    """
    velocity = (after.float() - before.float()) / (next_sigma - sigma)
    return before.float() - sigma * velocity


class QueuedPreview(NamedTuple):
    """The preview of an image after `step` steps."""

    request: RequestState
    image: ImageState
    step: int
    pixels: Tensor
    """uint8 [height, width, 3] on the host. From a GPU, it is complete at the end of the pass."""


class LatentPreviewer:
    """Makes previews from latents of one checkpoint. Belongs to the thread that owns the device."""

    def __init__(self, space: LatentSpace) -> None:
        self._space = space
        self._scale = max(1, space.pixels_per_latent // PIXELS_PER_PREVIEW_PIXEL)
        """Pixels of a preview for each latent, on each side."""

    def fit(self) -> None:
        """Fits the map, unless that was done, and makes one preview, so that later ones do nothing for the first time.

        Takes less than a second for the embedded VAE on a CPU.
        """
        grid, side, threads = LatentGrid(1, 1), self._space.pixel_stride, torch.get_num_threads()
        # Several threads wait for each other in each of many small operations if other replicas start too.
        torch.set_num_threads(1)
        try:
            self.make(self._space.noise(torch.Generator("cpu"), grid), grid, (side, side))
        finally:
            torch.set_num_threads(threads)

    def queue(
        self, members: Sequence[tuple[RequestState, ImageState]], latents: Sequence[Tensor]
    ) -> list[QueuedPreview]:
        """The previews of those images that have one after this step. `latents` are those after it.

        On a GPU, previews are queued behind the step, so that nothing waits for them.
        """
        queued = []
        for (request, image), after in zip(members, latents, strict=True):
            step = image.step + 1
            if step in image.preview_steps:
                sigma, next_sigma = image.schedule.sigmas[step - 1 : step + 1]
                clean = predict_clean_latents(image.latents, after, sigma, next_sigma)
                pixels = self.make(clean, image.grid, request.parameters.size)
                queued.append(QueuedPreview(request, image, step, device.queue_to_host(pixels)))
        return queued

    @torch.no_grad()
    def make(self, latents: Tensor, grid: LatentGrid, size: Size) -> Tensor:
        """The preview of packed clean latents: uint8 [height, width, 3] on the device, for an image of `size`."""
        weight, bias = self._map
        colours = torch.nn.functional.conv2d(_pad(unpack(latents.float(), grid)), weight, bias)
        values = torch.nn.functional.pixel_shuffle(colours, self._scale)[0].permute(1, 2, 0)
        pixels_per_value = self._space.pixels_per_latent // self._scale
        width, height = (max(1, round(side / pixels_per_value)) for side in size)
        return (values[:height, :width].clamp(0, 1) * 255).round().to(torch.uint8).contiguous()

    @cached_property
    def _map(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution from latents to the colours of their pixels, by least squares."""
        inputs, targets = [], []
        for image in synthetic_images(FIT_LATENTS * self._space.pixels_per_latent):
            latents = self._space.mean(self._space.encode(image)).double().cpu()
            inputs.append(torch.nn.functional.unfold(_pad(latents), KERNEL)[0].T)
            targets.append(self._average(image))
        features = torch.cat(inputs)
        features = torch.cat((features, torch.ones(len(features), 1, dtype=torch.float64)), dim=1)
        solution = torch.linalg.lstsq(features, torch.cat(targets)).solution.float().to(self._space.device)
        weight = solution[:-1].T.reshape(solution.shape[1], -1, KERNEL, KERNEL).contiguous()
        return weight, solution[-1].contiguous()

    def _average(self, image: ImageArray) -> Tensor:
        """The colours of the pixels of each latent, from 0 to 1: [latents, colours]."""
        colours = torch.from_numpy(image).double().permute(2, 0, 1)[None] / 255
        pooled = torch.nn.functional.avg_pool2d(colours, self._space.pixels_per_latent // self._scale)
        return torch.nn.functional.pixel_unshuffle(pooled, self._scale).flatten(2)[0].T


def _pad(latents: Tensor) -> Tensor:
    border = KERNEL // 2
    return torch.nn.functional.pad(latents, (border, border, border, border), mode="replicate")


def synthetic_images(side: int) -> list[ImageArray]:
    """Images with which the map is fitted, always the same ones: lines and shapes on white, and a colour gradient."""
    rng = np.random.default_rng(FIT_SEED)
    white = np.full((side, side, 3), 255, np.uint8)
    lines = [_draw(rng, white, shapes=8, filled=False) for _ in range(6)]
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3)).astype(np.uint8))
    gradient = np.asarray(corners.resize((side, side), Image.Resampling.BICUBIC))
    return [*lines, _draw(rng, white, shapes=4, filled=True), _draw(rng, gradient, shapes=4, filled=True)]


def _draw(rng: np.random.Generator, background: ImageArray, shapes: int, filled: bool) -> ImageArray:
    """`background` with random shapes: filled ellipses and rectangles, or their outlines and lines."""
    image = Image.fromarray(background)
    canvas, side = ImageDraw.Draw(image), image.width
    for number in range(shapes):
        x, y = (int(each) for each in rng.integers(0, side, 2))
        radius, width = int(rng.integers(side // 16, side // 5)), max(1, int(rng.integers(side // 128, side // 51)))
        hue, saturation, value = rng.random(), float(rng.choice([0, 0.7, 1])), rng.uniform(0.2, 1)
        red, green, blue = (int(255 * each) for each in colorsys.hsv_to_rgb(hue, saturation, value))
        colour, box = (red, green, blue), (x - radius, y - radius, x + radius, y + radius)
        if number % 2:
            canvas.ellipse(box, fill=colour if filled else None, outline=colour, width=width)
        elif filled:
            canvas.rectangle(box, fill=colour)
        else:
            canvas.line((x, y, x + int(rng.integers(-2 * radius, 2 * radius)), y + radius), fill=colour, width=width)
    return np.array(image)
