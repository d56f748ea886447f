"""A base model with nonzero outputs, and prompt embeds for it."""

import torch
from diffusers import FluxTransformer2DModel

from training.flow_matching import Text
from training.transformer import build


def random_embeds(batch: int) -> Text:
    """Returns the same random prompt embeds and pooled prompt embeds for every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 7, 128, generator=generator), torch.randn(batch, 128, generator=generator)


def zero_embeds(batch: int) -> Text:
    prompt_embeds, pooled_prompt_embeds = random_embeds(batch)
    return torch.zeros_like(prompt_embeds), torch.zeros_like(pooled_prompt_embeds)


def nonzero_base() -> FluxTransformer2DModel:
    """Returns a base model whose last layer and modulations are nonzero, as after training."""
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False).eval()
