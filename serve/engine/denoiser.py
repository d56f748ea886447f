"""Runs denoising steps for batches of images."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from serve.engine import device
from serve.engine.batching import BatchCandidate, select_batch
from serve.engine.checkpoint import Checkpoint
from serve.engine.latents import add_noise
from serve.engine.request_state import BatchKey, ImageState, InpaintLatents, RequestState
from serve.engine.watchdog import Watchdog, WorkItem
from serve.events import StepDone
from serve.settings import PoolSettings

_TRAIN_TIMESTEPS = 1000
"""The transformer multiplies timesteps by this, so they are divided by it, as in diffusers' pipelines."""
_log = logging.getLogger(__name__)

BatchItem = tuple[RequestState, ImageState]


class BatchExecutor:
    """Selects the next batch and advances its images by one step. If the batch fails, the failing image is isolated."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings, watchdog: Watchdog) -> None:
        self._denoiser = Denoiser(checkpoint)
        self._device = checkpoint.device
        self._max_batch = 1 if pool.disable_batching else pool.max_batch
        self._batch_across_loras = pool.batch_across_loras
        self._watchdog = watchdog
        self._next_keys: tuple[BatchKey, ...] = ()
        self.batches = 0
        """Completed batches; a failed batch that is retried in parts counts by its parts."""
        self.image_steps = 0
        """Steps of single images in those batches."""

    def run_next(self, requests: Sequence[RequestState]) -> list[RequestState]:
        """Runs the next batch. Returns the requests with an image that fails even alone."""
        members = {
            (request.number, image.index): (request, image)
            for request in requests
            for image in request.images or ()
            if not image.finished
        }
        pending = [
            BatchCandidate(request.number, image.index, self._batch_key(image)) for request, image in members.values()
        ]
        batch = select_batch(pending, self._next_keys, self._max_batch)
        self._next_keys = batch.next_keys
        failed: list[RequestState] = []
        self._run([members[image.request_number, image.image_index] for image in batch.candidates], failed)
        return failed

    def _batch_key(self, image: ImageState) -> BatchKey:
        if self._batch_across_loras:
            return image.batch_key
        return image.batch_key._replace(loras=image.active_loras.scales)

    def _run(self, members: Sequence[BatchItem], failed: list[RequestState]) -> None:
        """Steps `members` together. If that fails, each half is tried, until single failing images are found."""
        members = [(request, image) for request, image in members if request not in failed]
        if not members:
            return
        for request, _ in members:
            request.start()
        latents = self._try_step(members)
        if latents is not None:
            self._advance(members, latents)
        elif len(members) == 1:
            failed.append(members[0][0])
        else:
            device.empty_cache(self._device)
            middle = len(members) // 2
            self._run(members[:middle], failed)
            self._run(members[middle:], failed)

    def _try_step(self, members: Sequence[BatchItem]) -> list[Tensor] | None:
        """The latents of each image after its step, or None. Keeps no reference to the error, which may hold memory."""
        request, _ = members[0]
        work = WorkItem("step", images=len(members), pixels=request.pixels)
        try:
            with self._watchdog.track(work):
                latents = self._denoiser.step([image for _, image in members])
                device.synchronize(self._device)
        except Exception:
            _log.exception("%s failed%s", work, "; it is retried in halves" if len(members) > 1 else "")
            return None
        return latents

    def _advance(self, members: Sequence[BatchItem], latents: Sequence[Tensor]) -> None:
        self.batches += 1
        self.image_steps += len(members)
        for request in dict.fromkeys(request for request, _ in members):
            request.record_batch(len(members))
        for (request, image), new_latents in zip(members, latents, strict=True):
            image.latents = new_latents
            image.step += 1
            request.emit(StepDone(image.index, image.step, image.schedule.steps))


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
