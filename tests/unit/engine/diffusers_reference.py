"""Runs diffusers' pipelines with the networks of a checkpoint, as the reference for latents and images."""

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import GenerationRequest
from serve.model_specs import ImageArray

_PIPELINES = {
    "text_to_image": FluxPipeline,
    "image_to_image": FluxImg2ImgPipeline,
    "inpainting": FluxInpaintPipeline,
}


def latents(checkpoint: Checkpoint, request: GenerationRequest, image: int = 0, /, **arguments: Any) -> Tensor:
    """The pipeline's latents for one image of the request, before decoding: `[1, tokens, channels]`."""
    result: Tensor = _run(checkpoint, request, image, output_type="latent", **arguments)
    return result


def pixels(checkpoint: Checkpoint, request: GenerationRequest, image: int = 0, /, **arguments: Any) -> ImageArray:
    return np.asarray(_run(checkpoint, request, image, output_type="pil", **arguments)[0])


def make_pipeline(checkpoint: Checkpoint, mode: str = "text_to_image") -> Any:
    """The pipeline of a mode, with the networks of the checkpoint."""
    return _PIPELINES[mode](
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(checkpoint.noise_scheduler_config)),
        vae=checkpoint.vae,
        text_encoder=checkpoint.clip,
        tokenizer=checkpoint.clip_tokenizer,
        text_encoder_2=checkpoint.t5,
        tokenizer_2=checkpoint.t5_tokenizer,
        transformer=checkpoint.transformer,
    )


def _run(checkpoint: Checkpoint, request: GenerationRequest, image: int, /, **arguments: Any) -> Any:
    width, height = request.size
    inputs: dict[str, Any] = {
        "prompt": request.prompt,
        "width": width,
        "height": height,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator("cpu").manual_seed(request.seeds[image]),
        "max_sequence_length": checkpoint.max_sequence_length,
    }
    mode = "text_to_image"
    if request.image is not None:
        mode = "image_to_image"
        inputs |= {"image": Image.fromarray(request.image), "strength": request.strength}
    if request.mask is not None:
        mode = "inpainting"
        inputs["mask_image"] = Image.fromarray(request.mask)
    pipeline = make_pipeline(checkpoint, mode)
    pipeline.set_progress_bar_config(disable=True)
    with patch(f"{type(pipeline).__module__}.randn_tensor", _float32_noise):
        return pipeline(**inputs | arguments).images


def _float32_noise(*arguments: Any, dtype: torch.dtype, **options: Any) -> Tensor:
    """The pipelines' noise, generated in float32 as the engine does.

    torch need not generate the same numbers in bf16. It does in version 2.13 on a CPU; with 2.11 and a GPU, the
    latents of the pipelines were those of other noise.
    """
    noise: Tensor = randn_tensor(*arguments, dtype=torch.float32, **options)
    return noise.to(dtype)
