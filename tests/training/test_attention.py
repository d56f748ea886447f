"""`training.attention` matches diffusers, and fresh attention heads depend on positions."""

import pytest
import torch

from training.attention import use_plain_attention
from training.flow_matching import TokenLayout, position_ids
from training.transformer import build


@pytest.mark.parametrize("weight", [None, torch.linspace(-1, 2, 9)[None, None, None]], ids=["plain", "weighted"])
def test_plain_attention_matches_diffusers(weight: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        # Fresh blocks are the identity, so this changes them.
        parameter.data += 0.05 * torch.randn_like(parameter)
    inputs = {
        "hidden_states": torch.randn(2, 6, 64),
        "encoder_hidden_states": torch.randn(2, 3, 128),
        "pooled_projections": torch.randn(2, 128),
        "timestep": torch.tensor([0.2, 0.9]),
        "img_ids": position_ids(TokenLayout(2, 3)),
        "txt_ids": torch.zeros(3, 3),
        "joint_attention_kwargs": None if weight is None else {"attention_mask": weight},
    }
    with torch.no_grad():
        expected = model(**inputs).sample
        use_plain_attention(model)
        actual = model(**inputs).sample
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_fresh_attention_heads_depend_on_positions() -> None:
    torch.manual_seed(0)
    model = build()
    attention = model.single_transformer_blocks[0].attn
    cosines, sines = model.pos_embed(torch.cat([torch.zeros(1, 3), position_ids(TokenLayout(16, 16))]))
    query, key = (
        layer.bias.detach().unflatten(0, (4, 48, 1)).transpose(1, 2) for layer in (attention.to_q, attention.to_k)
    )
    rotations = torch.complex(cosines[1:, ::2], sines[1:, ::2])
    rotated_query = torch.view_as_complex(query.unflatten(-1, (-1, 2)).contiguous()) * rotations
    unrotated_key = torch.view_as_complex(key.unflatten(-1, (-1, 2)).contiguous())
    logits = (rotated_query * unrotated_key.conj()).real.sum(-1)
    assert (logits.std(1) > 1).all()
