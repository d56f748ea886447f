"""One denoising step of a batch of images."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serve.engine.block_runner import CompiledBlocks, EagerBlocks
from serve.engine.checkpoint import Checkpoint
from serve.engine.cuda_graphs import CAPTURE_USES, CudaGraphs
from serve.engine.flux_transformer import Conditioning, FluxTransformer
from serve.engine.latents import add_noise
from serve.engine.lora_manager import ActiveLoras
from serve.engine.lora_products import BatchLoras
from serve.engine.prompt_encoder import EncodedPrompt
from serve.engine.request_state import ImageState, InpaintLatents
from serve.engine.sigmas import SigmaSchedule
from serve.settings import PoolSettings

MAX_BATCHES = 4
"""Batches whose inputs are remembered: images of several sizes, or with different deadlines, advance alternately."""


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """The inputs that stay the same while a batch has the same images."""

    text: Tensor
    loras: BatchLoras | None


class Denoiser:
    """One denoising step of a batch. Images are not modified, so a failed step can be retried with fewer of them."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings) -> None:
        self._lora_slots = checkpoint.lora_slots
        self._guidance_embeds = checkpoint.guidance_embeds
        self._is_compiled = "transformer" in pool.compiled_parts
        self._graphs = CudaGraphs() if pool.cuda_graphs and checkpoint.device.type == "cuda" else None
        blocks = CompiledBlocks if self._is_compiled else EagerBlocks
        self._transformer = FluxTransformer(
            checkpoint.transformer,
            checkpoint.lora_slots,
            blocks(checkpoint.transformer, checkpoint.lora_slots, checkpoint.attention),
            pool.precompute_modulation,
            self._graphs,
        )
        self._batches: OrderedDict[tuple[ImageState, ...], _Batch] = OrderedDict()
        """Those that continue, least recently used first."""

    def warm_up(self, image_tokens: int, text_tokens: int) -> None:
        """Compiles the transformer, if it is to be compiled, for all sizes and LoRAs."""
        if self._is_compiled:
            self._transformer.warm_up(image_tokens, text_tokens)

    @property
    def warm_up_steps(self) -> int:
        """Steps of an image after which further ones do nothing for the first time."""
        return 1 if self._graphs is None else CAPTURE_USES

    def forget(self, images: Iterable[ImageState]) -> None:
        """Frees what is kept for further steps of `images`."""
        ended = set(images)
        for batch in [batch for batch in self._batches if not ended.isdisjoint(batch)]:
            del self._batches[batch]

    def free_memory_after(self, error: Exception) -> None:
        """Frees everything that can be computed again, if `error` says that the device has no memory left."""
        if isinstance(error, torch.OutOfMemoryError):
            self._batches.clear()
            if self._graphs is not None:
                self._graphs.clear()

    def condition(
        self,
        prompt: EncodedPrompt,
        img_ids: Tensor,
        schedule: SigmaSchedule,
        guidance: float | None,
        active_loras: ActiveLoras,
    ) -> Conditioning:
        """Computes what all images of a request share. `img_ids` are [image tokens, 3]."""
        return self._transformer.condition(
            prompt.prompt_embeds,
            prompt.pooled_prompt_embeds,
            img_ids,
            schedule,
            (guidance or 0.0) if self._guidance_embeds else None,
            active_loras.selection,
        )

    @torch.no_grad()
    def step(self, images: Sequence[ImageState]) -> list[Tensor]:
        """The latents of each image after its next step. All images must have the same batch key.

        Follows `FlowMatchEulerDiscreteScheduler.step`, with a timestep, guidance and prompt per image.
        """
        key = tuple(images)
        batch = self._batches.pop(key, None) or self._make_batch(images)
        latents = torch.cat([image.latents for image in images])
        modulation = self._transformer.modulation([(image.conditioning, image.step) for image in images], batch.loras)
        velocity = self._transformer.predict_velocity(
            latents, batch.text, images[0].conditioning.rotary, modulation, batch.loras
        )
        if all(image.step + 1 < image.schedule.steps for image in images):
            self._batches[key] = batch
            if len(self._batches) > MAX_BATCHES:
                self._batches.popitem(last=False)
        deltas = torch.stack([image.conditioning.sigma_deltas[image.step] for image in images])
        stepped = (latents.float() + deltas[:, None, None] * velocity).to(velocity.dtype)
        return [
            after
            if image.inpaint is None
            else _restore_kept(after, image.inpaint, image.schedule.sigmas[image.step + 1])
            for image, after in zip(images, stepped.chunk(len(images)), strict=True)
        ]

    def _make_batch(self, images: Sequence[ImageState]) -> _Batch:
        return _Batch(
            text=torch.cat([image.conditioning.text for image in images]),
            loras=self._lora_slots.batch([image.active_loras.selection for image in images]),
        )


def _restore_kept(latents: Tensor, inpaint: InpaintLatents, sigma: float) -> Tensor:
    """`latents` where the mask repaints; elsewhere those of the input image at the noise level of the next step."""
    kept = add_noise(inpaint.latents, inpaint.noise, sigma) if sigma else inpaint.latents
    return (1 - inpaint.mask) * kept + inpaint.mask * latents
