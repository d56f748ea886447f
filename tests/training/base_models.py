"""A base with nonzero outputs, and random prompt embeds for it."""

import torch
from diffusers import FluxTransformer2DModel

from training.flow import Text
from training.transformer import build


def text(batch: int) -> Text:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 7, 128, generator=generator), torch.randn(batch, 128, generator=generator)


def empty(batch: int) -> Text:
    embeds = text(batch)
    return torch.zeros_like(embeds[0]), torch.zeros_like(embeds[1])


def nonzero_base() -> FluxTransformer2DModel:
    """Returns a base whose last layer and modulations are nonzero, as after training."""
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False).eval()
