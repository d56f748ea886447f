"""An image generated alone equals the image of diffusers' pipeline for the same seed, to the bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import GenerationRequest
from serve.model_specs import VariantName
from serve.settings import Precision
from test_checkpoints.networks import Geometry
from tests.unit.engine import diffusers_reference
from tests.unit.engine.checkpoints import FIVE_STAGES, SMALL, Checkpoints
from tests.unit.engine.requests import Mode, make_image, make_request, run_request

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


def _checkpoint(checkpoints: Checkpoints, variant: VariantName, precision: Precision) -> Checkpoint:
    """A checkpoint with all networks in one dtype, as diffusers' pipelines require."""
    return checkpoints.get(variant, precision, vae="float32" if precision == "float32" else "bfloat16")


def _assert_equals_pipeline(checkpoint: Checkpoint, request: GenerationRequest) -> None:
    latents = run_request(checkpoint, request).latents[0]
    assert latents.dtype == checkpoint.transformer.dtype
    assert torch.equal(latents, diffusers_reference.latents(checkpoint, request))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("dev", {"size": (96, 64), "steps": 4, "guidance": 3.0}),
        ("dev", {"size": (64, 96), "steps": 7, "guidance": 0.0}),
        ("dev", {"size": (160, 48), "steps": 3, "guidance": 10.0, "seeds": (2**64 - 1,)}),
        ("dev", {"size": (64, 64), "steps": 1}),
        ("dev", {"size": (256, 240), "steps": 2, "prompt": "the word hello, 手書き, in blue ink " * 20}),
        ("schnell", {"size": (96, 64), "steps": 4, "guidance": None}),
        ("schnell", {"size": (48, 112), "steps": 1, "guidance": None, "prompt": ""}),
    ],
)
def test_text_to_image_equals_flux_pipeline(
    checkpoints: Checkpoints, variant: VariantName, precision: Precision, fields: dict[str, Any]
) -> None:
    _assert_equals_pipeline(_checkpoint(checkpoints, variant, precision), make_request(**fields))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", ["image_to_image", "inpainting"])
@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("dev", {"size": (96, 64), "steps": 4, "strength": 0.6}),
        ("dev", {"size": (64, 96), "steps": 10, "strength": 0.8, "guidance": 7.5}),
        ("dev", {"size": (80, 112), "steps": 7, "strength": 0.05}),
        ("dev", {"size": (64, 64), "steps": 3, "strength": 1.0}),
        ("dev", {"size": (64, 64), "steps": 1, "strength": 1.0}),
        ("schnell", {"size": (96, 64), "steps": 4, "strength": 0.5, "guidance": None}),
    ],
)
def test_image_to_image_and_inpainting_equal_their_pipelines(
    checkpoints: Checkpoints, variant: VariantName, precision: Precision, mode: Mode, fields: dict[str, Any]
) -> None:
    _assert_equals_pipeline(_checkpoint(checkpoints, variant, precision), make_request(mode, **fields))


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image"])
@pytest.mark.parametrize("size", [(96, 64), (48, 80)])
def test_pixels_equal_pipeline_pixels(checkpoints: Checkpoints, mode: Mode, size: tuple[int, int]) -> None:
    checkpoint = _checkpoint(checkpoints, "dev", "float32")
    request = make_request(mode, size=size)
    assert np.array_equal(run_request(checkpoint, request).pixels[0], diffusers_reference.pixels(checkpoint, request))


@pytest.mark.parametrize("mode", ["image_to_image", "inpainting"])
def test_float32_vae_with_bf16_transformer_encodes_in_float32(checkpoints: Checkpoints, mode: Mode) -> None:
    """Pipelines cannot mix dtypes, but accept latents as the image, so this test encodes the reference's image."""
    checkpoint = checkpoints.get("dev", "bf16", vae="float32")
    request = make_request(mode, seeds=(11,))
    assert request.image is not None
    generator = torch.Generator("cpu").manual_seed(11)
    values = torch.from_numpy(2.0 * (request.image.astype(np.float32) / 255.0) - 1.0)
    sample = checkpoint.vae.encode(values.unsqueeze(0).permute(0, 3, 1, 2)).latent_dist.sample(generator)
    latents = (sample - checkpoint.vae.config.shift_factor) * checkpoint.vae.config.scaling_factor
    arguments = {"image": latents.bfloat16(), "generator": generator}
    if mode == "inpainting":
        arguments["masked_image_latents"] = torch.zeros_like(latents)
    expected = diffusers_reference.latents(checkpoint, request, **arguments)
    assert torch.equal(run_request(checkpoint, request).latents[0], expected)


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
def test_vae_with_five_stages_equals_pipeline(checkpoints: Checkpoints, mode: Mode) -> None:
    checkpoint = checkpoints.get("dev", "float32", geometry=FIVE_STAGES)
    assert checkpoint.pixel_stride == 32
    _assert_equals_pipeline(checkpoint, make_request(mode, size=(96, 64)))


@pytest.mark.parametrize(("geometry", "padded_size"), [(SMALL, (112, 80)), (FIVE_STAGES, (128, 96))])
def test_size_that_is_not_a_multiple_of_the_stride_is_padded_and_cropped(
    checkpoints: Checkpoints, geometry: Geometry, padded_size: tuple[int, int]
) -> None:
    checkpoint = checkpoints.get("dev", "float32", geometry=geometry)
    request, padded = make_request(size=(100, 72)), make_request(size=padded_size)
    expected = diffusers_reference.pixels(checkpoint, padded)[:72, :100]
    assert np.array_equal(run_request(checkpoint, request).pixels[0], expected)


def test_input_image_is_padded_with_its_edge_to_the_stride(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "float32")
    request = make_request("image_to_image", size=(100, 72))
    assert request.image is not None
    padded_image = np.pad(request.image, ((0, 8), (0, 12), (0, 0)), mode="edge")
    padded = replace(request, size=(112, 80), image=padded_image)
    expected = diffusers_reference.pixels(checkpoint, padded)[:72, :100]
    assert np.array_equal(run_request(checkpoint, request).pixels[0], expected)


def test_input_image_and_mask_are_not_uniform() -> None:
    """Uniform inputs would hide errors in the comparisons above."""
    assert make_image((96, 64)).std() > 50
    mask = make_request("inpainting").mask
    assert mask is not None
    assert 0.2 < (mask >= 128).mean() < 0.8
    assert np.isin(mask, (0, 255), invert=True).mean() > 0
