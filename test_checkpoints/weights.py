"""Adjusts the random weights of the networks so that their images have structure.

Untrained networks turn noise into noise. With these weights, the VAE passes colours through at the resolution of its
latents, and the transformer damps differences between neighbouring tokens and amplifies what they share. The images are
soft shapes in colours that depend on seed and prompt. The functions change the networks in place, with torch's global
random generator.
"""

import math

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn

_COLOURS = 3
_TEXTURE = 0.1
"""Factor on the VAE's random weights."""
_LATENT_GAIN = 4.0
"""Gives latents of usual images about the variance that FLUX's scaling factor expects."""
_LOG_VARIANCE = -4.0
_CONTRAST = 0.5
_AVERAGE = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 4
_SMOOTH = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16

_DAMPING = 3.0
"""Over all steps, differences between neighbours shrink by exp of this."""
_SPREAD_FIRST, _SPREAD_LAST = 0.2, -1.2
"""Share of its neighbourhood that a block adds to each token. The last block's sign amplifies common content."""
_LEVEL = 2.0
"""Size of a constant beside each token's content, relative to it, which keeps layer norms nearly linear."""
_FOCUS = 2.5
"""Scale of normed queries and keys: attention reaches a few tokens far."""
_CONTENT_BLIND = 3.0
"""Size of a position-independent part of queries and keys, so that attention depends on positions."""
_MODULATION, _DETAIL = 0.25, 0.1
"""Factors on the random modulation by prompt and time, and on the random feed-forward layers."""


@torch.no_grad()
def carry_colours(vae: AutoencoderKL) -> None:
    """Makes the VAE pass colours through.

    A colour travels as two channels, itself and its negative: SiLU of the first minus SiLU of the second restores it.
    """
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.mul_(_TEXTURE)
            if layer.bias is not None:
                layer.bias.zero_()
    for layer in vae.modules():
        for sampler in getattr(layer, "downsamplers", None) or ():
            _pass_on(sampler.conv, _AVERAGE)
        for sampler in getattr(layer, "upsamplers", None) or ():
            _pass_on(sampler.conv, _SMOOTH)
        if getattr(layer, "conv_shortcut", None) is not None:
            _pass_on(layer.conv_shortcut, torch.ones(1, 1))
    pairs = torch.kron(torch.eye(_COLOURS), torch.tensor([[1.0], [-1.0]]))
    spread = nn.init.orthogonal_(torch.empty(vae.config.latent_channels, _COLOURS))
    _mix(vae.encoder.conv_in, pairs)
    _mix(vae.encoder.conv_out, _LATENT_GAIN * spread @ pairs.T)
    vae.encoder.conv_out.bias[vae.config.latent_channels :] = _LOG_VARIANCE
    _mix(vae.decoder.conv_in, pairs @ spread.T)
    _mix(vae.decoder.conv_out, _CONTRAST * pairs.T)


def _pass_on(conv: nn.Conv2d, kernel: torch.Tensor) -> None:
    """Maps every channel to itself, blurred by `kernel`."""
    channels = min(conv.in_channels, conv.out_channels)
    conv.weight[:channels, :channels] += torch.eye(channels)[:, :, None, None] * kernel


def _mix(conv: nn.Conv2d, matrix: torch.Tensor) -> None:
    """Makes `conv` multiply each pixel's first channels by `matrix`."""
    rows, columns = matrix.shape
    conv.weight.zero_()
    conv.weight[:rows, :columns, 1, 1] = matrix


@torch.no_grad()
def draw_together(transformer: FluxTransformer2DModel) -> None:
    """Makes each token's velocity about `damping * (itself - its amplified neighbourhood)`.

    A token occupies some channels of the residual stream, spread over the heads, and the constant those beside them.
    Blocks write only what a token's four latents have in common, so that no pattern within tokens can grow.
    """
    width, channels = transformer.inner_dim, transformer.config.in_channels
    own = torch.arange(channels) * (width // channels)
    tokens, constant = torch.zeros(width, channels), torch.zeros(width)
    tokens[own, torch.arange(channels)] = 1
    constant[own + 1] = _LEVEL * torch.tensor([1.0, -1.0]).repeat(channels // 2)  # Layer norms take away the mean.
    common = tokens @ torch.kron(torch.eye(channels // 4), torch.full((4, 4), 0.25)) @ tokens.T
    deviation = math.sqrt(channels * (1 + _LEVEL**2) / width)
    _set(transformer.x_embedder, tokens, constant)
    _set(transformer.proj_out, _DAMPING * deviation * tokens.T)
    norm = transformer.norm_out.linear
    _set(norm, torch.cat([norm.weight[:width], _DETAIL * common @ norm.weight[width:]]))
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    for block in blocks:
        spread = _SPREAD_LAST if block is blocks[-1] else _SPREAD_FIRST
        _attend_nearby(block.attn, spread * deviation * common)
    for block in transformer.transformer_blocks:
        _open_gate(block.norm1.linear, width)
        _set(block.attn.to_out[0], torch.eye(width))
        _set(block.ff.net[2], _DETAIL * common @ block.ff.net[2].weight)
    for block in transformer.single_transformer_blocks:
        _open_gate(block.norm.linear, width)
        _set(block.proj_out, torch.cat([torch.eye(width), _DETAIL * common @ block.proj_out.weight[:, width:]], 1))


def _attend_nearby(attention: FluxAttention, values: torch.Tensor) -> None:
    """Makes queries and keys alike and nearly constant, so that attention depends on their rotation by position."""
    angle = 2 * math.pi * torch.rand(attention.to_q.out_features // 2)
    direction = _CONTENT_BLIND * torch.stack([angle.cos(), angle.sin()], -1).flatten()
    for layer, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
        _set(layer, attention.to_q.weight, direction)
        nn.init.constant_(norm.weight, _FOCUS)
    _set(attention.to_v, values)


def _open_gate(modulation: nn.Linear, width: int) -> None:
    """Adds attention to the residual stream at full strength, apart from the modulation."""
    modulation.weight.mul_(_MODULATION)
    modulation.bias[2 * width : 3 * width] = 1


def _set(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    nn.init.zeros_(layer.bias) if bias is None else layer.bias.copy_(bias)
