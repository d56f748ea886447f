"""Generates images with diffusers' `FluxPipeline`, the same way for every peer.

The environment variables are set by the benchmark, because some of the servers cannot pass arguments on.
"""

import base64
import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline
from PIL import Image

from benchmarks.peers.workload import GUIDANCE, ImageRequest, group_by_key

MEDIA_TYPES = {"webp": "image/webp", "png": "image/png"}
WEBP_OPTIONS = {"quality": 80, "optimize": True}
MAX_SEQUENCE_LENGTH = 64


class Pipeline:
    """The checkpoint in `PEERS_CHECKPOINT`, with weights rounded to bf16 and computed in `PEERS_DTYPE`."""

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ["PEERS_THREADS"]))
        folder, dtype = os.environ["PEERS_CHECKPOINT"], getattr(torch, os.environ["PEERS_DTYPE"])
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
        pipeline = FluxPipeline.from_pretrained(folder, vae=vae, torch_dtype=torch.bfloat16)
        for network in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
            network.to(dtype)
        vae.float()
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self.generate([ImageRequest("warm-up", seed=0, num_inference_steps=1)])

    def generate(self, requests: Sequence[ImageRequest]) -> list[list[str]]:
        """The `data:` URIs of each request's images. Requests with equal sizes and steps share a call."""
        outputs: list[list[str]] = [[] for _ in requests]
        for positions in group_by_key(requests):
            group = [requests[position] for position in positions]
            images = self._run(group)
            for number, position in enumerate(positions):
                count = group[number].num_outputs
                own = images[number * count : (number + 1) * count]
                outputs[position] = [_data_uri(image, group[number].output_format) for image in own]
        return outputs

    def _run(self, group: Sequence[ImageRequest]) -> list[Image.Image]:
        """All images of requests with equal keys, request by request."""
        first = group[0]
        seeds = [request.seed + index for request in group for index in range(first.num_outputs)]
        result: Any = self._pipeline(
            prompt=[request.prompt for request in group],
            width=first.width,
            height=first.height,
            num_inference_steps=first.num_inference_steps,
            num_images_per_prompt=first.num_outputs,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            max_sequence_length=MAX_SEQUENCE_LENGTH,
        )
        images: list[Image.Image] = result.images
        return images


def _data_uri(image: Image.Image, output_format: str) -> str:
    file = BytesIO()
    image.save(file, output_format, **(WEBP_OPTIONS if output_format == "webp" else {}))
    return f"data:{MEDIA_TYPES[output_format]};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
