"""FLUX's attention once more, for training on a CPU: the same answers as diffusers' processor in a third of the time.

PyTorch's fused attention is slow there, its gradient above all; a few hundred tokens need no fusing.
"""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention

from training.machine import Machine

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines (tokens, head width), each twice in a row."""


class PlainAttention:
    """As diffusers' `FluxAttnProcessor`, with softmax and products written out."""

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        assert image_rotary_emb is not None
        by_head = (-1, attn.head_dim)
        query = _normed(attn.to_q(hidden_states).unflatten(-1, by_head), attn.norm_q)
        key = _normed(attn.to_k(hidden_states).unflatten(-1, by_head), attn.norm_k)
        value = attn.to_v(hidden_states).unflatten(-1, by_head)
        if encoder_hidden_states is not None:
            text_query = _normed(attn.add_q_proj(encoder_hidden_states).unflatten(-1, by_head), attn.norm_added_q)
            text_key = _normed(attn.add_k_proj(encoder_hidden_states).unflatten(-1, by_head), attn.norm_added_k)
            text_value = attn.add_v_proj(encoder_hidden_states).unflatten(-1, by_head)
            query, key = torch.cat([text_query, query], 1), torch.cat([text_key, key], 1)
            value = torch.cat([text_value, value], 1)
        cosines, sines = (table[:, None, ::2] for table in image_rotary_emb)
        query = (_turned(query, cosines, sines) * attn.head_dim**-0.5).to(value.dtype).transpose(1, 2)
        key = _turned(key, cosines, sines).to(value.dtype).transpose(1, 2)
        agreement = torch.matmul(query, key.transpose(2, 3))
        if attention_mask is not None:
            agreement = agreement + attention_mask.to(agreement.dtype)
        weights = agreement.softmax(dim=-1, dtype=value.dtype)
        out = torch.matmul(weights, value.transpose(1, 2)).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        words = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, words:]), attn.to_add_out(out[:, :words])


def _normed(heads: torch.Tensor, norm: torch.nn.RMSNorm) -> torch.Tensor:
    """In float32, (batch, tokens, heads, width)."""
    heads = heads.float()
    return heads * (heads.square().mean(-1, keepdim=True) + (norm.eps or 0.0)).rsqrt() * norm.weight


def _turned(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Each pair of features turned by its place's angle."""
    first, second = heads[..., ::2], heads[..., 1::2]
    return torch.stack([first * cosines - second * sines, first * sines + second * cosines], -1).flatten(3)


def use_plain_attention(model: FluxTransformer2DModel) -> None:
    for module in model.modules():
        if isinstance(module, FluxAttention):
            module.set_processor(PlainAttention())


def speed_up(model: FluxTransformer2DModel, machine: Machine) -> None:
    """What the machine gains from: attention written out on a CPU, and blocks compiled, if it was asked to."""
    if not machine.is_gpu:
        use_plain_attention(model)
    if machine.compiles:
        model.compile_repeated_blocks()
