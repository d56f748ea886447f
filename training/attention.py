"""FLUX's attention as separate matrix products and softmax, three times as fast on a CPU as diffusers' processor.

PyTorch's fused attention, which diffusers uses, has a slow backward pass on a CPU. The results are the same.
"""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention

from training.hardware import Machine

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, `[tokens, head_width]`, with each value twice in a row."""


class PlainAttention:
    """Replaces diffusers' `FluxAttnProcessor`."""

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        assert image_rotary_emb is not None
        head_shape = (-1, attn.head_dim)
        query = _rms_norm(attn.to_q(hidden_states).unflatten(-1, head_shape), attn.norm_q)
        key = _rms_norm(attn.to_k(hidden_states).unflatten(-1, head_shape), attn.norm_k)
        value = attn.to_v(hidden_states).unflatten(-1, head_shape)
        if encoder_hidden_states is not None:
            text_query = _rms_norm(attn.add_q_proj(encoder_hidden_states).unflatten(-1, head_shape), attn.norm_added_q)
            text_key = _rms_norm(attn.add_k_proj(encoder_hidden_states).unflatten(-1, head_shape), attn.norm_added_k)
            text_value = attn.add_v_proj(encoder_hidden_states).unflatten(-1, head_shape)
            query, key = torch.cat([text_query, query], 1), torch.cat([text_key, key], 1)
            value = torch.cat([text_value, value], 1)
        cosines, sines = (table[:, None, ::2] for table in image_rotary_emb)
        query = (_rotate(query, cosines, sines) * attn.head_dim**-0.5).to(value.dtype).transpose(1, 2)
        key = _rotate(key, cosines, sines).to(value.dtype).transpose(1, 2)
        scores = torch.matmul(query, key.transpose(2, 3))
        if attention_mask is not None:
            scores = scores + attention_mask.to(scores.dtype)
        weights = scores.softmax(dim=-1, dtype=value.dtype)
        out = torch.matmul(weights, value.transpose(1, 2)).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        text_tokens = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, text_tokens:]), attn.to_add_out(out[:, :text_tokens])


def _rms_norm(heads: torch.Tensor, norm: torch.nn.RMSNorm) -> torch.Tensor:
    """RMS norm in float32 of `[batch, tokens, heads, width]`."""
    heads = heads.float()
    return heads * (heads.square().mean(-1, keepdim=True) + (norm.eps or 0.0)).rsqrt() * norm.weight


def _rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Applies the rotary embedding to each pair of features."""
    first, second = heads[..., ::2], heads[..., 1::2]
    return torch.stack([first * cosines - second * sines, first * sines + second * cosines], -1).flatten(3)


def use_plain_attention(model: FluxTransformer2DModel) -> None:
    for module in model.modules():
        if isinstance(module, FluxAttention):
            module.set_processor(PlainAttention())


def speed_up(model: FluxTransformer2DModel, machine: Machine) -> None:
    """Uses `PlainAttention` on a CPU, and compiles the blocks if `machine.compiles` is set."""
    if not machine.is_gpu:
        use_plain_attention(model)
    if machine.compiles:
        model.compile_repeated_blocks()
