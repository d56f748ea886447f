"""One denoising step for images that share a transformer pass: each at its own time, guidance and text.

Which images share a pass is decided elsewhere. Nothing is changed here until the whole pass succeeded, so it may be
tried again with fewer images.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.draft import Draft, Original, add_noise
from serve.engine.invariance import batch_invariant

_TIME_UNIT = 1000
"""The transformer multiplies its times by this; schedules count in the product."""


class Stepper:
    """The transformer of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._transformer = checkpoint.transformer
        self._low_rank = checkpoint.low_rank
        self._guided = checkpoint.guided
        self._device = checkpoint.device

    @torch.no_grad()
    def step(self, drafts: list[Draft]) -> list[Tensor]:
        """The latents of each draft after its next step. All must have the same grid and text length."""
        latents = torch.cat([draft.latents for draft in drafts])
        velocity = self._velocity(latents, drafts)
        # diffusers multiplies in the transformer's dtype, so the width of the step is rounded to it.
        width = self._numbers([draft.schedule.sigma_change(draft.done) for draft in drafts]).to(velocity.dtype)
        moved = (latents.float() + width[:, None, None] * velocity).to(velocity.dtype)
        return [
            after if draft.original is None else _keep(after, draft.original, draft.schedule.sigmas[draft.done + 1])
            for draft, after in zip(drafts, moved.chunk(len(drafts)), strict=True)
        ]

    def _velocity(self, latents: Tensor, drafts: list[Draft]) -> Tensor:
        times = self._numbers([draft.schedule.timesteps[draft.done] for draft in drafts])
        guidance = self._numbers([draft.guidance for draft in drafts]) if self._guided else None
        embeddings = torch.cat([draft.text.embeddings for draft in drafts])
        invariant = batch_invariant(self._device) if len(drafts) > 1 else nullcontext()
        with invariant, self._low_rank.adding([draft.mix.blend for draft in drafts]):
            velocity: Tensor = self._transformer(
                hidden_states=latents,
                timestep=times.to(latents.dtype) / _TIME_UNIT,
                guidance=guidance,
                pooled_projections=torch.cat([draft.text.summary for draft in drafts]),
                encoder_hidden_states=embeddings,
                txt_ids=drafts[0].positions.new_zeros(embeddings.shape[1], 3),
                img_ids=drafts[0].positions,
                return_dict=False,
            )[0]
        return velocity

    def _numbers(self, numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, device=self._device, dtype=torch.float32)


def _keep(latents: Tensor, original: Original, sigma: float) -> Tensor:
    """`latents` where the mask repaints, elsewhere the original at the noise of the step that comes next."""
    kept = add_noise(original.latents, original.noise, sigma) if sigma else original.latents
    return (1 - original.repaint) * kept + original.repaint * latents
