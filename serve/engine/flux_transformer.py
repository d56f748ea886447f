"""The forward pass of FLUX's transformer. What does not depend on the latents is computed once per request.

It computes what diffusers' `FluxTransformer2DModel` computes, to the bit on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from serve.engine.batch_invariance import batch_invariant
from serve.engine.block_runner import BlockRunner
from serve.engine.cuda_graphs import MAX_TOKENS, CudaGraphs
from serve.engine.flux_blocks import DOUBLE_VECTORS, SINGLE_VECTORS, Rotary
from serve.engine.lora_layers import LoraSlots, SlotSelection
from serve.engine.lora_products import BatchLoras
from serve.engine.sigmas import SigmaSchedule

_TRAIN_TIMESTEPS = 1000
"""The unit of timesteps. diffusers' pipelines divide timesteps by it, and its transformer multiplies by it."""
_FINAL_VECTORS = 2
"""Modulation vectors of the last norm: scale and shift."""


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What the transformer reads beside the latents: the same for all images of a request."""

    text: Tensor
    """The embedded prompt: [1, text tokens, width]."""
    rotary: Rotary
    timesteps: Tensor
    """[steps], 0 to 1000, float32."""
    sigma_deltas: Tensor
    """The change of sigma in each step: [steps]. In the transformer's dtype, in which diffusers multiplies."""
    guidance: Tensor | None
    """[1], float32; None for transformers without a guidance embedding."""
    pooled_prompt_embeds: Tensor
    """[1, width]"""
    modulation: Tensor | None = None
    """The modulation vectors of all steps, [steps, vectors * width]; None if each step computes its own."""


class FluxTransformer:
    """A transformer of diffusers with LoRAs. Belongs to the engine's thread."""

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        lora_slots: LoraSlots,
        blocks: BlockRunner,
        precompute_modulation: bool = True,
        graphs: CudaGraphs | None = None,
    ) -> None:
        self._transformer = transformer
        self._lora_slots = lora_slots
        self._blocks = blocks
        self._precompute_modulation = precompute_modulation
        self._graphs = graphs
        vectors = [
            *(DOUBLE_VECTORS for _ in transformer.transformer_blocks),
            *(SINGLE_VECTORS for _ in transformer.single_transformer_blocks),
            _FINAL_VECTORS,
        ]
        bounds = [transformer.inner_dim * count for count in accumulate(vectors, initial=0)]
        self._columns = [slice(start, end) for start, end in pairwise(bounds)]
        """Of each block's modulation vectors, and of the last norm's."""

    @torch.no_grad()
    def condition(
        self,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        img_ids: Tensor,
        schedule: SigmaSchedule,
        guidance: float | None,
        loras: SlotSelection | None = None,
    ) -> Conditioning:
        """The conditioning of a request. `prompt_embeds` are [1, text tokens, width], `img_ids` [image tokens, 3]."""
        txt_ids = img_ids.new_zeros(prompt_embeds.shape[1], 3)
        conditioning = Conditioning(
            text=self._run(self._transformer.context_embedder, prompt_embeds, self._lora_slots.batch([loras])),
            rotary=Rotary(*self._transformer.pos_embed(torch.cat((txt_ids, img_ids)))),
            timesteps=prompt_embeds.new_tensor(schedule.timesteps, dtype=torch.float32),
            sigma_deltas=prompt_embeds.new_tensor([schedule.sigma_delta(step) for step in range(schedule.steps)]),
            guidance=None if guidance is None else prompt_embeds.new_tensor([guidance], dtype=torch.float32),
            pooled_prompt_embeds=pooled_prompt_embeds,
        )
        if not self._precompute_modulation:
            return conditioning
        steps = [(conditioning, step) for step in range(schedule.steps)]
        modulation = self.modulation(steps, self._lora_slots.batch([loras] * len(steps))) if steps else None
        return replace(conditioning, modulation=modulation)

    @torch.no_grad()
    def modulation(self, steps: Sequence[tuple[Conditioning, int]], loras: BatchLoras | None) -> Tensor:
        """The modulation vectors of a step of each image: [images, vectors * width]. `loras` are those of the batch."""
        precomputed = [each.modulation[step] for each, step in steps if each.modulation is not None]
        if precomputed:
            return torch.stack(precomputed)
        timesteps = torch.stack([each.timesteps[step] for each, step in steps])
        pooled = torch.cat([each.pooled_prompt_embeds for each, _ in steps])
        guidance = [each.guidance for each, _ in steps if each.guidance is not None]
        with batch_invariant(pooled.device, len(steps)), self._lora_slots.apply(loras):
            return self._compute_modulation(timesteps, torch.cat(guidance) if guidance else None, pooled)

    @torch.no_grad()
    def predict_velocity(
        self, latents: Tensor, text: Tensor, rotary: Rotary, modulation: Tensor, loras: BatchLoras | None
    ) -> Tensor:
        """The velocity of each image, [images, image tokens, channels], as `latents`.

        `text` is [images, text tokens, width], and `modulation` [images, vectors * width]. The result is valid until
        the next call.
        """
        self._blocks.prepare(loras)
        tokens = len(latents) * (latents.shape[1] + text.shape[1])
        parts = () if loras is None else loras.parts
        if self._graphs is None or tokens > MAX_TOKENS or len(parts) > 1 or (loras is not None and loras.kroneckers):
            return self._forward(latents, text, rotary, modulation, loras)
        tensors = [
            latents,
            text,
            *rotary,
            modulation,
            *(tensor for part in parts for tensor in (part.slots, part.scales)),
        ]

        def forward(tensors: Sequence[Tensor]) -> Tensor:
            latents, text, cos, sin, modulation, *selected = tensors
            own = replace(loras, parts=(replace(parts[0], slots=selected[0], scales=selected[1]),)) if loras else None
            return self._forward(latents, text, Rotary(cos, sin), modulation, own)

        # A part for some images of the batch only is captured with their positions.
        key = None
        if parts:
            key = self._blocks.kernel_layers(parts[0].layers), parts[0].images.start, parts[0].images.stop
        return self._graphs.run(key, forward, tensors)

    @torch.no_grad()
    def warm_up(self, image_tokens: int, text_tokens: int) -> None:
        """Compiles what this transformer runs for one image and for several, without and with LoRAs."""
        weight = self._transformer.x_embedder.weight
        head_width = self._transformer.config.attention_head_dim
        zeros = partial(torch.zeros, device=weight.device, dtype=self._transformer.dtype)
        rotary = Rotary(*(zeros(text_tokens + image_tokens, head_width, dtype=torch.float32) for _ in range(2)))
        some = SlotSelection({}, frozenset(self._lora_slots.groups))
        selections = (None, some) if self._lora_slots.count else (None,)
        for images in (1, 2):
            for selection in selections:
                loras = self._lora_slots.batch([selection] * images)
                self._blocks.prepare(loras)
                self._forward(
                    zeros(images, image_tokens, self._transformer.config.in_channels),
                    zeros(images, text_tokens, self._transformer.inner_dim),
                    rotary,
                    zeros(images, self._columns[-1].stop),
                    loras,
                )

    def _forward(
        self, latents: Tensor, text: Tensor, rotary: Rotary, modulation: Tensor, loras: BatchLoras | None
    ) -> Tensor:
        transformer, text_tokens, columns = self._transformer, text.shape[1], iter(self._columns)
        # The output of a linear layer is a view, for which the first block would be compiled apart from all others.
        image = self._run(transformer.x_embedder, latents, loras).clone()
        for block in transformer.transformer_blocks:
            image, text = self._blocks.double(block, image, text, modulation[:, next(columns)], rotary, loras)
        tokens = torch.cat((text, image), dim=1)
        for block in transformer.single_transformer_blocks:
            tokens = self._blocks.single(block, tokens, modulation[:, next(columns)], rotary, loras)
        scale, shift = modulation[:, next(columns)].chunk(_FINAL_VECTORS, dim=1)
        normed = transformer.norm_out.norm(tokens[:, text_tokens:])
        return self._run(transformer.proj_out, normed * (1 + scale)[:, None] + shift[:, None], loras)

    def _run(self, layer: nn.Linear, inputs: Tensor, loras: BatchLoras | None) -> Tensor:
        with batch_invariant(inputs.device, len(inputs)), self._lora_slots.apply(loras):
            output: Tensor = layer(inputs)
        return output

    def _compute_modulation(self, timesteps: Tensor, guidance: Tensor | None, pooled: Tensor) -> Tensor:
        """Follows the order of roundings of diffusers' `FluxPipeline` and `FluxTransformer2DModel`."""
        transformer, dtype = self._transformer, pooled.dtype
        times = (timesteps.to(dtype) / _TRAIN_TIMESTEPS) * _TRAIN_TIMESTEPS
        if guidance is None:
            embedding = transformer.time_text_embed(times, pooled)
        else:
            embedding = transformer.time_text_embed(times, guidance.to(dtype) * _TRAIN_TIMESTEPS, pooled)
        norms = [
            *(norm for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)),
            *(block.norm for block in transformer.single_transformer_blocks),
            transformer.norm_out,
        ]
        return torch.cat([norm.linear(norm.silu(embedding)) for norm in norms], dim=1)
