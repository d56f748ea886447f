"""Weights survive the way through one block of bytes, and nothing of them is copied on the way out."""

import numpy as np
import pytest
import torch

from serve.lora.convert import StateDictConverter
from serve.lora.safetensors_header import InvalidLoraFile
from serve.lora.weights import LoraWeights, LowRank, pack, unpack
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import TINY

NAMES = lora_files.bfl_names(range(2), range(2), outside=True)


def weights(dtype: torch.dtype = torch.float32) -> LoraWeights:
    pairs = {layer: (down.to(dtype), up.to(dtype)) for layer, (down, up) in lora_files.tiny_pairs(TINY).items()}
    tensors = lora_files.kohya(pairs, NAMES, alpha=1.5) | lora_files.flat(lora_files.clip_pairs(TINY), "lora_te1_")
    tensors["lora_te3_x.alpha"] = torch.tensor(1.0)
    return StateDictConverter(TINY, max_rank=16).convert(tensors, {})


def distinct_downs(weights: LoraWeights) -> int:
    return len({each.down.data_ptr() for each in weights.transformer.values()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_block_holds_all_that_weights_are(dtype: torch.dtype) -> None:
    given = weights(dtype)
    found = unpack(pack(given))
    for part in ("transformer", "clip"):
        ours, theirs = getattr(found, part), getattr(given, part)
        assert list(ours) == list(theirs)
        for layer, low_rank in theirs.items():
            assert torch.equal(ours[layer].down, low_rank.down)
            assert torch.equal(ours[layer].up, low_rank.up)
            assert (ours[layer].scale, ours[layer].up.dtype) == (low_rank.scale, low_rank.up.dtype)
    assert found.unapplied == given.unapplied
    assert len(given.unapplied) == 1
    assert (found.rank, found.size_bytes) == (given.rank, given.size_bytes)


def test_a_shared_matrix_is_in_the_block_once() -> None:
    given = weights()
    found = unpack(pack(given))
    assert distinct_downs(found) == distinct_downs(given) < len(given.transformer)
    query, key = (found.transformer[f"transformer_blocks.0.attn.{name}"] for name in ("to_q", "to_k"))
    assert query.down.data_ptr() == key.down.data_ptr()


def test_weights_are_views_into_a_block_that_nobody_may_write_to() -> None:
    block = pack(weights()).copy()
    block.setflags(write=False)
    found = unpack(block)
    begin = block.ctypes.data
    for each in (*found.transformer.values(), *found.clip.values()):
        for matrix in (each.down, each.up):
            assert begin <= matrix.data_ptr() < begin + block.nbytes
            assert matrix.is_contiguous()


def test_weights_keep_their_block_alive() -> None:
    given = weights()
    found = unpack(pack(given))
    for layer, low_rank in given.transformer.items():
        assert torch.equal(found.transformer[layer].up, low_rank.up)


def test_an_equal_lora_has_an_equal_block() -> None:
    assert bytes(pack(weights())) == bytes(pack(weights()))


def test_a_block_that_was_cut_off_is_refused() -> None:
    block = pack(LoraWeights({"x_embedder": LowRank(torch.ones(1, 2), torch.ones(3, 1))}, {}))
    assert unpack(block).transformer["x_embedder"].rank == 1
    with pytest.raises(InvalidLoraFile, match="cut off"):
        unpack(np.ascontiguousarray(block[:-1]))
