"""diffusers' own pipelines over the same networks: what every picture is compared with."""

from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from PIL import Image
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import GenerationRequest, ImageArray

_PIPELINES = {
    "text_to_image": FluxPipeline,
    "image_to_image": FluxImg2ImgPipeline,
    "inpainting": FluxInpaintPipeline,
}


def latents(checkpoint: Checkpoint, job: GenerationRequest, image: int = 0, /, **arguments: Any) -> Tensor:
    """What the pipeline makes of the job's image before it is decoded: [1, tokens, channels]."""
    made: Tensor = _run(checkpoint, job, image, output_type="latent", **arguments)
    return made


def pixels(checkpoint: Checkpoint, job: GenerationRequest, image: int = 0, /, **arguments: Any) -> ImageArray:
    return np.asarray(_run(checkpoint, job, image, output_type="pil", **arguments)[0])


def pipeline_over(checkpoint: Checkpoint, mode: str = "text_to_image") -> Any:
    """The pipeline of a mode; it draws with the checkpoint's own networks."""
    return _PIPELINES[mode](
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(checkpoint.scheduler_config)),
        vae=checkpoint.vae,
        text_encoder=checkpoint.clip,
        tokenizer=checkpoint.clip_tokenizer,
        text_encoder_2=checkpoint.t5,
        tokenizer_2=checkpoint.t5_tokenizer,
        transformer=checkpoint.transformer,
    )


def _run(checkpoint: Checkpoint, job: GenerationRequest, image: int, /, **arguments: Any) -> Any:
    plan = job.plan
    pipeline = pipeline_over(checkpoint, plan.mode)
    pipeline.set_progress_bar_config(disable=True)
    assert plan.size is not None
    width, height = plan.size
    given: dict[str, Any] = {
        "prompt": plan.prompt,
        "width": width,
        "height": height,
        "num_inference_steps": plan.steps,
        "guidance_scale": plan.guidance,
        "generator": torch.Generator("cpu").manual_seed(plan.seeds[image]),
        "max_sequence_length": checkpoint.max_sequence_length,
    }
    if job.image is not None:
        given |= {"image": Image.fromarray(job.image), "strength": plan.strength}
    if job.mask is not None:
        given["mask_image"] = Image.fromarray(job.mask)
    return pipeline(**given | arguments).images
