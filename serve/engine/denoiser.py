"""One denoising step of a batch of images."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from serve.engine.checkpoint import Checkpoint
from serve.engine.latents import add_noise
from serve.engine.request_state import ImageState, InpaintLatents

_TRAIN_TIMESTEPS = 1000
"""The transformer multiplies timesteps by this, so they are divided by it, as in diffusers' pipelines."""


class Denoiser:
    """One denoising step of a batch. Images are not modified, so a failed step can be retried with fewer of them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._transformer = checkpoint.transformer
        self._lora_slots = checkpoint.lora_slots
        self._guidance_embeds = checkpoint.guidance_embeds
        self._device = checkpoint.device

    @torch.no_grad()
    def step(self, images: list[ImageState]) -> list[Tensor]:
        """The latents of each image after its next step. All images must have the same batch key.

        Follows `FlowMatchEulerDiscreteScheduler.step`, with a timestep, guidance and prompt per image.
        """
        latents = torch.cat([image.latents for image in images])
        velocity = self._predict_velocity(latents, images)
        # diffusers multiplies in the transformer's dtype, which rounds the change of sigma.
        deltas = self._to_tensor([image.schedule.sigma_delta(image.step) for image in images]).to(velocity.dtype)
        stepped = (latents.float() + deltas[:, None, None] * velocity).to(velocity.dtype)
        return [
            after
            if image.inpaint is None
            else _restore_kept(after, image.inpaint, image.schedule.sigmas[image.step + 1])
            for image, after in zip(images, stepped.chunk(len(images)), strict=True)
        ]

    def _predict_velocity(self, latents: Tensor, images: list[ImageState]) -> Tensor:
        timesteps = self._to_tensor([image.schedule.timesteps[image.step] for image in images])
        guidance = self._to_tensor([image.guidance for image in images]) if self._guidance_embeds else None
        prompt_embeds = torch.cat([image.encoded_prompt.prompt_embeds for image in images])
        invariant = batch_invariant(self._device) if len(images) > 1 else nullcontext()
        with invariant, self._lora_slots.apply([image.active_loras.selection for image in images]):
            velocity: Tensor = self._transformer(
                hidden_states=latents,
                timestep=timesteps.to(latents.dtype) / _TRAIN_TIMESTEPS,
                guidance=guidance,
                pooled_projections=torch.cat([image.encoded_prompt.pooled_prompt_embeds for image in images]),
                encoder_hidden_states=prompt_embeds,
                txt_ids=images[0].img_ids.new_zeros(prompt_embeds.shape[1], 3),
                img_ids=images[0].img_ids,
                return_dict=False,
            )[0]
        return velocity

    def _to_tensor(self, numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, device=self._device, dtype=torch.float32)


def _restore_kept(latents: Tensor, inpaint: InpaintLatents, sigma: float) -> Tensor:
    """`latents` where the mask repaints; elsewhere those of the input image at the noise level of the next step."""
    kept = add_noise(inpaint.latents, inpaint.noise, sigma) if sigma else inpaint.latents
    return (1 - inpaint.mask) * kept + inpaint.mask * latents


def batch_invariant(device: torch.device) -> AbstractContextManager[Any]:
    """Within the block, linear layers on a CPU give each image bit for bit the result of a batch of one.

    oneDNN sums a product in an order that depends on the number of rows, so the same row gets other bits in a larger
    batch: in float32 nearly always, in bf16 in nearly every pass from an inner width of 512 on. So linear layers run
    image by image; attention and norms treat each image separately anyway. On a GPU this does nothing: there, one
    product for the whole batch is what makes batching fast.
    """
    return _LinearPerImage() if device.type == "cpu" else nullcontext()


class _LinearPerImage(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear and args[0].shape[0] > 1:
            images, *weights = args
            return torch.cat([linear(image, *weights, **kwargs or {}) for image in images.split(1)])
        return func(*args, **kwargs or {})
