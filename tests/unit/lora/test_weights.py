"""Packing and unpacking of LoRA weights."""

import numpy as np
import pytest
import torch

from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.safetensors_header import InvalidLoraFile
from serve.lora.weights import LoraWeights, LowRank, pack, unpack
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import TINY

NAMES = lora_files.bfl_names(range(2), range(2), outer_layers=True)


def make_weights(dtype: torch.dtype = torch.float32) -> LoraWeights:
    pairs = {layer: (down.to(dtype), up.to(dtype)) for layer, (down, up) in lora_files.transformer_pairs(TINY).items()}
    tensors = lora_files.kohya(pairs, NAMES, alpha=1.5)
    tensors |= lora_files.with_underscores(lora_files.clip_pairs(TINY), "lora_te1_")
    tensors["lora_te3_x.alpha"] = torch.tensor(1.0)
    tensors["lora_unet_double_blocks_0_img_attn_qkv.diff_b"] = torch.arange(48).to(dtype)
    tensors["lora_unet_img_in.diff_b"] = torch.ones(16, dtype=dtype)
    del tensors["lora_unet_img_in.lora_down.weight"], tensors["lora_unet_img_in.lora_up.weight"]
    layer = "lora_unet_double_blocks_1_img_attn_qkv"
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(layer)}
    tensors |= {
        f"{layer}.lokr_w1": torch.arange(24).view(6, 4).to(dtype),
        f"{layer}.lokr_w2": torch.arange(32).view(8, 4).to(dtype),
    }
    return StateDictConverter(TINY, max_rank=16).convert(tensors, {})


def distinct_down_matrices(weights: LoraWeights) -> int:
    return len({layer.down.data_ptr() for layer in weights.transformer.values()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_survive_packing(dtype: torch.dtype) -> None:
    weights = make_weights(dtype)
    unpacked = unpack(pack(weights))
    for part in ("transformer", "clip"):
        found, expected = getattr(unpacked, part), getattr(weights, part)
        assert list(found) == list(expected)
        for layer, low_rank in expected.items():
            assert torch.equal(found[layer].down, low_rank.down)
            assert torch.equal(found[layer].up, low_rank.up)
            assert (found[layer].scale, found[layer].up.dtype) == (low_rank.scale, low_rank.up.dtype)
            bias, expected_bias = found[layer].bias, low_rank.bias
            assert (bias is None) == (expected_bias is None)
            assert bias is None or expected_bias is None or torch.equal(bias, expected_bias)
    assert sum(low_rank.bias is not None for low_rank in unpacked.transformer.values()) == 4
    assert list(unpacked.kroneckers) == list(weights.kroneckers)
    assert len(weights.kroneckers) == 3
    for layer, kronecker in weights.kroneckers.items():
        other = unpacked.kroneckers[layer]
        assert torch.equal(other.outer, kronecker.outer)
        assert torch.equal(other.inner, kronecker.inner)
        numbers = (kronecker.first_row, kronecker.outputs, kronecker.scale)
        assert (other.first_row, other.outputs, other.scale) == numbers
    assert unpacked.unapplied == weights.unapplied
    assert len(weights.unapplied) == 1
    assert unpacked.slots == weights.slots


def test_shared_matrix_is_packed_once() -> None:
    weights = make_weights()
    unpacked = unpack(pack(weights))
    assert distinct_down_matrices(unpacked) == distinct_down_matrices(weights) < len(weights.transformer)
    query, key = (unpacked.transformer[f"transformer_blocks.0.attn.{name}"] for name in ("to_q", "to_k"))
    assert query.down.data_ptr() == key.down.data_ptr()


def test_unpacked_weights_are_views_into_a_read_only_block() -> None:
    block = pack(make_weights()).copy()
    block.setflags(write=False)
    unpacked = unpack(block)
    begin = block.ctypes.data
    for layer in (*unpacked.transformer.values(), *unpacked.clip.values()):
        for matrix in (layer.down, layer.up) if layer.rank else ():
            assert begin <= matrix.data_ptr() < begin + block.nbytes
            assert matrix.is_contiguous()


def test_unpacked_weights_keep_their_block_alive() -> None:
    weights = make_weights()
    unpacked = unpack(pack(weights))
    for layer, low_rank in weights.transformer.items():
        assert torch.equal(unpacked.transformer[layer].up, low_rank.up)


def test_equal_weights_pack_to_equal_blocks() -> None:
    assert bytes(pack(make_weights())) == bytes(pack(make_weights()))


def test_truncated_block_is_rejected() -> None:
    block = pack(LoraWeights({"x_embedder": LowRank(torch.ones(1, 2), torch.ones(3, 1))}, {}))
    assert unpack(block).transformer["x_embedder"].rank == 1
    with pytest.raises(InvalidLoraFile, match="truncated"):
        unpack(np.ascontiguousarray(block[:-1]))
