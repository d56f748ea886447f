"""Adjusts the random weights of the networks so that their images have structure.

Untrained networks only generate noise. With these weights, the VAE reconstructs colours at the resolution of its
latents, and the transformer reduces differences between neighbouring tokens and amplifies their common content. The
images are soft shapes in colours that depend on seed and prompt. The functions change the networks in place, with
torch's global random generator.
"""

import math

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn

_COLOURS = 3
_VAE_RANDOM_FACTOR = 0.1
"""Factor on the VAE's random weights."""
_LATENT_GAIN = 4.0
"""Gives latents of usual images about the variance that FLUX's scaling factor expects."""
_LOG_VARIANCE = -4.0
_CONTRAST = 0.5
_AVERAGE = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 4
_SMOOTH = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16

_DAMPING = 3.0
"""Over all steps, differences between neighbours shrink by a factor of exp(_DAMPING)."""
_NEIGHBOUR_SHARE, _LAST_NEIGHBOUR_SHARE = 0.2, -1.2
"""Share of its neighbourhood that a block adds to each token; negative in the last block, to amplify common content."""
_CONSTANT_SIZE = 2.0
"""Size of a constant that is added beside the token, relative to the token. It keeps the layer norms nearly linear."""
_QK_NORM_WEIGHT = 2.5
"""Scale of normalised queries and keys, with which attention has a range of a few tokens."""
_POSITION_BIAS_SIZE = 3.0
"""Size of a constant part of queries and keys, with which attention depends more on positions than on content."""
_MODULATION_FACTOR, _FEED_FORWARD_FACTOR = 0.25, 0.1
"""Factors on the random modulation by prompt and time, and on the random feed-forward layers."""


@torch.no_grad()
def make_vae_preserve_colours(vae: AutoencoderKL) -> None:
    """Makes the VAE reconstruct colours.

    Each colour uses two channels, its value and its negative. SiLU(x) - SiLU(-x) equals x, so a colour passes the
    activations unchanged.
    """
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.mul_(_VAE_RANDOM_FACTOR)
            if layer.bias is not None:
                layer.bias.zero_()
    for layer in vae.modules():
        for sampler in getattr(layer, "downsamplers", None) or ():
            _add_channel_identity(sampler.conv, _AVERAGE)
        for sampler in getattr(layer, "upsamplers", None) or ():
            _add_channel_identity(sampler.conv, _SMOOTH)
        if getattr(layer, "conv_shortcut", None) is not None:
            _add_channel_identity(layer.conv_shortcut, torch.ones(1, 1))
    pairs = torch.kron(torch.eye(_COLOURS), torch.tensor([[1.0], [-1.0]]))
    latent_directions = nn.init.orthogonal_(torch.empty(vae.config.latent_channels, _COLOURS))
    _set_channel_matrix(vae.encoder.conv_in, pairs)
    _set_channel_matrix(vae.encoder.conv_out, _LATENT_GAIN * latent_directions @ pairs.T)
    vae.encoder.conv_out.bias[vae.config.latent_channels :] = _LOG_VARIANCE
    _set_channel_matrix(vae.decoder.conv_in, pairs @ latent_directions.T)
    _set_channel_matrix(vae.decoder.conv_out, _CONTRAST * pairs.T)


def _add_channel_identity(conv: nn.Conv2d, kernel: torch.Tensor) -> None:
    """Adds weights that map every channel to itself, blurred by `kernel`."""
    channels = min(conv.in_channels, conv.out_channels)
    conv.weight[:channels, :channels] += torch.eye(channels)[:, :, None, None] * kernel


def _set_channel_matrix(conv: nn.Conv2d, matrix: torch.Tensor) -> None:
    """Makes `conv` multiply each pixel's first channels by `matrix`."""
    rows, columns = matrix.shape
    conv.weight.zero_()
    conv.weight[:rows, :columns, 1, 1] = matrix


@torch.no_grad()
def make_transformer_smooth(transformer: FluxTransformer2DModel) -> None:
    """Makes each token's velocity about `damping * (itself - its amplified neighbourhood)`.

    In the residual stream, a token uses one channel in every `width / in_channels`, and the constant the next one.
    Blocks write only the mean of a token's four latents, so that no pattern within tokens can grow.
    """
    width, channels = transformer.inner_dim, transformer.config.in_channels
    token_channels = torch.arange(channels) * (width // channels)
    tokens, constant = torch.zeros(width, channels), torch.zeros(width)
    tokens[token_channels, torch.arange(channels)] = 1
    constant[token_channels + 1] = _CONSTANT_SIZE * torch.tensor([1.0, -1.0]).repeat(
        channels // 2
    )  # Mean 0, because layer norms subtract the mean.
    common = tokens @ torch.kron(torch.eye(channels // 4), torch.full((4, 4), 0.25)) @ tokens.T
    deviation = math.sqrt(channels * (1 + _CONSTANT_SIZE**2) / width)
    _set(transformer.x_embedder, tokens, constant)
    _set(transformer.proj_out, _DAMPING * deviation * tokens.T)
    norm = transformer.norm_out.linear
    _set(norm, torch.cat([norm.weight[:width], _FEED_FORWARD_FACTOR * common @ norm.weight[width:]]))
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    for block in blocks:
        neighbour_share = _LAST_NEIGHBOUR_SHARE if block is blocks[-1] else _NEIGHBOUR_SHARE
        _set_local_attention(block.attn, neighbour_share * deviation * common)
    for block in transformer.transformer_blocks:
        _enable_attention_gate(block.norm1.linear, width)
        _set(block.attn.to_out[0], torch.eye(width))
        _set(block.ff.net[2], _FEED_FORWARD_FACTOR * common @ block.ff.net[2].weight)
    for block in transformer.single_transformer_blocks:
        _enable_attention_gate(block.norm.linear, width)
        _set(
            block.proj_out,
            torch.cat([torch.eye(width), _FEED_FORWARD_FACTOR * common @ block.proj_out.weight[:, width:]], 1),
        )


def _set_local_attention(attention: FluxAttention, values: torch.Tensor) -> None:
    """Makes queries and keys equal and nearly constant, so that attention depends on their rotation by position."""
    angle = 2 * math.pi * torch.rand(attention.to_q.out_features // 2)
    direction = _POSITION_BIAS_SIZE * torch.stack([angle.cos(), angle.sin()], -1).flatten()
    for layer, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
        _set(layer, attention.to_q.weight, direction)
        nn.init.constant_(norm.weight, _QK_NORM_WEIGHT)
    _set(attention.to_v, values)


def _enable_attention_gate(modulation: nn.Linear, width: int) -> None:
    """Sets the gate of the attention output to 1 plus the modulation."""
    modulation.weight.mul_(_MODULATION_FACTOR)
    modulation.bias[2 * width : 3 * width] = 1


def _set(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    nn.init.zeros_(layer.bias) if bias is None else layer.bias.copy_(bias)
