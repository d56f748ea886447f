"""The blocks of FLUX's transformer, over the modules of diffusers.

They compute what the blocks of diffusers' `FluxTransformer2DModel` compute, to the bit on a CPU. Modulation vectors are
an argument, so that those of all steps can be computed at once. LoRAs are an argument too, so that all blocks of a kind
share one compiled function.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn
from torch.nn.functional import gelu

from serve.engine.attention import Attention

Linears = Callable[[Tensor, Sequence[nn.Linear]], list[Tensor]]
"""The outputs of linear layers with the same inputs, with LoRAs added."""

DOUBLE_VECTORS = 12
"""Modulation vectors of a double block: shift, scale and gate of attention and feed-forward, of image and of text."""
SINGLE_VECTORS = 3
_FLOAT16_MAX = 65504


class Rotary(NamedTuple):
    """Rotary position embeddings: [text tokens + image tokens, head width]."""

    cos: Tensor
    sin: Tensor


def double_block(
    block: FluxTransformerBlock,
    image: Tensor,
    text: Tensor,
    vectors: Tensor,
    rotary: Rotary,
    attention: Attention,
    linears: Linears,
) -> tuple[Tensor, Tensor]:
    """The image and text tokens after the block, [images, tokens, width]; `vectors` are [images, 12 * width]."""
    of_image, of_text = vectors.chunk(2, dim=1)
    image_shift, image_scale, image_gate, *image_feed_forward = of_image.chunk(6, dim=1)
    text_shift, text_scale, text_gate, *text_feed_forward = of_text.chunk(6, dim=1)
    attn = block.attn
    queries, keys, values = linears(
        _modulate(block.norm1.norm(image), image_shift, image_scale), (attn.to_q, attn.to_k, attn.to_v)
    )
    text_queries, text_keys, text_values = linears(
        _modulate(block.norm1_context.norm(text), text_shift, text_scale),
        (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
    )
    attended = _attend(
        torch.cat((attn.norm_added_q(_split_heads(text_queries, attn)), attn.norm_q(_split_heads(queries, attn))), 1),
        torch.cat((attn.norm_added_k(_split_heads(text_keys, attn)), attn.norm_k(_split_heads(keys, attn))), 1),
        torch.cat((_split_heads(text_values, attn), _split_heads(values, attn)), 1),
        rotary,
        attention,
    )
    text_attended, image_attended = attended.split_with_sizes((text.shape[1], image.shape[1]), dim=1)
    (image_output,) = linears(image_attended.contiguous(), (attn.to_out[0],))
    (text_output,) = linears(text_attended.contiguous(), (attn.to_add_out,))
    image = image + image_gate[:, None] * image_output
    image = image + _feed_forward(block.ff, block.norm2(image), image_feed_forward, linears)
    text = text + text_gate[:, None] * text_output
    text = text + _feed_forward(block.ff_context, block.norm2_context(text), text_feed_forward, linears)
    return image, _clip(text)


def single_block(
    block: FluxSingleTransformerBlock,
    tokens: Tensor,
    vectors: Tensor,
    rotary: Rotary,
    attention: Attention,
    linears: Linears,
) -> Tensor:
    """The text and image tokens after the block, [images, tokens, width]; `vectors` are [images, 3 * width]."""
    attn = block.attn
    shift, scale, gate = vectors.chunk(3, dim=1)
    inputs = _modulate(block.norm.norm(tokens), shift, scale)
    hidden, queries, keys, values = linears(inputs, (block.proj_mlp, attn.to_q, attn.to_k, attn.to_v))
    attended = _attend(
        attn.norm_q(_split_heads(queries, attn)),
        attn.norm_k(_split_heads(keys, attn)),
        _split_heads(values, attn),
        rotary,
        attention,
    )
    (output,) = linears(torch.cat((attended, gelu(hidden, approximate="tanh")), dim=2), (block.proj_out,))
    return _clip(tokens + gate[:, None] * output)


def _modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normed * (1 + scale[:, None]) + shift[:, None]


def _feed_forward(layers: Any, normed: Tensor, vectors: Sequence[Tensor], linears: Linears) -> Tensor:
    shift, scale, gate = vectors
    (hidden,) = linears(_modulate(normed, shift, scale), (layers.net[0].proj,))
    (output,) = linears(gelu(hidden, approximate="tanh"), (layers.net[2],))
    return gate[:, None] * output


def _split_heads(projected: Tensor, attn: FluxAttention) -> Tensor:
    """[images, tokens, heads, head width]"""
    heads: Tensor = projected.unflatten(-1, (-1, attn.head_dim))  # type: ignore[no-untyped-call]
    return heads


def _attend(queries: Tensor, keys: Tensor, values: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
    """[images, tokens, width]"""
    queries = apply_rotary_emb(queries, rotary, sequence_dim=1)
    keys = apply_rotary_emb(keys, rotary, sequence_dim=1)
    return attention(queries, keys, values).flatten(2, 3).to(queries.dtype)


def _clip(tokens: Tensor) -> Tensor:
    return tokens.clip(-_FLOAT16_MAX, _FLOAT16_MAX) if tokens.dtype == torch.float16 else tokens
