"""LoHa and LoKr tensors are converted to the products that LyCORIS' formulas give."""

import pytest
import torch

from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.decompositions import KroneckerProduct, LowRankProduct, combine
from serve.lora.safetensors_header import InvalidLoraFile
from tests.unit.lora.geometries import TINY
from tests.unit.lora.lora_files import layer_delta

GENERATOR = torch.Generator().manual_seed(3)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


W1, W1A, W1B = random(4, 2), random(4, 2), random(2, 2)
W2, W2A, W2B = random(4, 8), random(4, 3), random(3, 8)


@pytest.mark.parametrize(
    ("tensors", "rank"),
    [
        ({"lokr_w1": W1, "lokr_w2_a": W2A, "lokr_w2_b": W2B}, 6),
        ({"lokr_w1": W1.T, "lokr_w2_a": W2A, "lokr_w2_b": W2B}, 6),
        ({"lokr_w1_a": W1A, "lokr_w1_b": W1B, "lokr_w2_a": W2A, "lokr_w2_b": W2B}, 6),
        ({"lokr_w1_a": W1A, "lokr_w1_b": W1B, "lokr_w2": W2}, 8),
        ({"lokr_w1": W1, "lokr_w2": W2}, 8),
    ],
)
def test_lokr_equals_the_kronecker_product(tensors: dict[str, torch.Tensor], rank: int) -> None:
    w1 = tensors["lokr_w1"] if "lokr_w1" in tensors else W1A @ W1B
    w2 = tensors["lokr_w2"] if "lokr_w2" in tensors else W2A @ W2B
    product = combine(tensors, max_rank=8)
    assert isinstance(product, KroneckerProduct)
    low_rank, expected = product.to_low_rank(), torch.kron(w1.contiguous(), w2)
    torch.testing.assert_close(low_rank.up @ low_rank.down, expected)
    torch.testing.assert_close(torch.kron(product.outer.full().contiguous(), product.inner.full()), expected)
    assert product.shape == low_rank.shape == tuple(expected.shape)
    assert product.rank == low_rank.down.shape[0] == rank


LOHA = {"hada_w1_a": random(6, 2), "hada_w1_b": random(2, 5), "hada_w2_a": random(6, 3), "hada_w2_b": random(3, 5)}


def test_loha_equals_the_elementwise_product_of_two_products() -> None:
    product = combine(LOHA, max_rank=6)
    assert isinstance(product, LowRankProduct)
    torch.testing.assert_close(
        product.up @ product.down,
        (LOHA["hada_w1_a"] @ LOHA["hada_w1_b"]) * (LOHA["hada_w2_a"] @ LOHA["hada_w2_b"]),
    )
    assert product.down.shape[0] == 6


@pytest.mark.parametrize(
    ("tensors", "scale"),
    [
        ({"lokr_w1": random(4, 4), "lokr_w2_a": random(4, 2), "lokr_w2_b": random(2, 4)}, 0.5),
        ({"lokr_w1_a": random(4, 2), "lokr_w1_b": random(2, 4), "lokr_w2": random(4, 4)}, 0.5),
        ({"lokr_w1": random(4, 4), "lokr_w2": random(4, 4)}, 1.0),
        (
            {
                "hada_w1_a": random(16, 2),
                "hada_w1_b": random(2, 16),
                "hada_w2_a": random(16, 2),
                "hada_w2_b": random(2, 16),
            },
            0.5,
        ),
    ],
    ids=["LoKr", "LoKr with first factor decomposed", "LoKr of full matrices ignores alpha", "LoHa"],
)
def test_alpha_is_divided_by_the_trained_rank(tensors: dict[str, torch.Tensor], scale: float) -> None:
    layer = "lycoris_transformer_blocks_0_attn_to_q"
    tensors_by_name = {f"{layer}.{role}": tensor for role, tensor in tensors.items()} | {
        f"{layer}.alpha": torch.tensor(1.0)
    }
    weights = StateDictConverter(TINY, max_rank=16).convert(tensors_by_name, {})
    name = "transformer_blocks.0.attn.to_q"
    kronecker = weights.kroneckers.get(f"transformer.{name}")
    assert (kronecker or weights.transformer[name]).scale == scale


def test_lokr_of_a_fused_layer_is_split() -> None:
    tensors = {"lokr_w1": random(3, 2), "lokr_w2_a": random(16, 1), "lokr_w2_b": random(1, 8)}
    tensors_by_name = {
        f"diffusion_model.double_blocks.0.img_attn.qkv.{role}": tensor for role, tensor in tensors.items()
    }
    weights = StateDictConverter(TINY, max_rank=16).convert(tensors_by_name, {})
    full = torch.kron(tensors["lokr_w1"], tensors["lokr_w2_a"] @ tensors["lokr_w2_b"])
    for layer, part in zip(("to_q", "to_k", "to_v"), torch.split(full, 16), strict=True):
        torch.testing.assert_close(layer_delta(weights, f"transformer_blocks.0.attn.{layer}"), part)


def test_product_above_the_maximum_rank_is_rejected() -> None:
    with pytest.raises(InvalidLoraFile, match=r"LoHa.* 6\b.* 5\b"):
        combine(LOHA, max_rank=5)
    with pytest.raises(InvalidLoraFile, match=r"rank 4\b.* 3\b.*extract"):
        combine({"diff": random(4, 9)}, max_rank=3)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_change_of_a_small_weight_is_a_low_rank_product(shape: tuple[int, int]) -> None:
    diff = random(*shape)
    product = combine({"diff": diff}, max_rank=4)
    assert isinstance(product, LowRankProduct)
    assert torch.equal(product.up @ product.down, diff)
    assert (product.down.shape[0], product.alpha_rank) == (4, None)


@pytest.mark.parametrize(
    "tensors",
    [
        {**LOHA, "hada_w1_b": random(3, 5)},
        {**LOHA, "hada_w2_a": random(7, 3)},
        {**LOHA, "hada_w2_b": random(3, 4)},
        {"lokr_w1": W1, "lokr_w2_a": W2A, "lokr_w2_b": random(4, 8)},
    ],
)
def test_inconsistent_shapes_are_rejected(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InvalidLoraFile, match="do not match"):
        combine(tensors, max_rank=64)


def test_kernel_of_a_1x1_convolution_is_accepted() -> None:
    product = combine({"down": random(2, 5, 1, 1), "up": random(6, 2, 1, 1)}, max_rank=4)
    assert isinstance(product, LowRankProduct)
    assert (product.down.shape, product.up.shape) == ((2, 5), (6, 2))
    with pytest.raises(InvalidLoraFile, match=r"shape \[2, 5, 3, 3\]"):
        combine({"down": random(2, 5, 3, 3), "up": random(6, 2, 1, 1)}, max_rank=4)
