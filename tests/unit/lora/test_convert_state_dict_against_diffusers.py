"""The converter gives the weights of diffusers' converters, which support only the geometry of FLUX.1."""

import re
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from diffusers.loaders import FluxLoraLoaderMixin
from peft.tuners.lora.layer import Linear
from transformers import CLIPTextConfig, CLIPTextModel

from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.model_geometry import ModelGeometry
from serve.lora.weights import LowRank
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import FLUX, FLUX_TRANSFORMER
from tests.unit.lora.lora_files import Pair, Tensors

SOME_NAMES = lora_files.bfl_names((0, 18), (0, 37), outer_layers=True)
ALL_NAMES = lora_files.bfl_names(range(19), range(38), outer_layers=True)
SHAPES = FLUX.transformer_layers()


def diffusers() -> Tensors:
    return lora_files.diffusers(lora_files.random_pairs(SOME_NAMES, SHAPES, rank=1))


def kohya() -> Tensors:
    """Without alpha for the final layers, because diffusers ignores it there."""
    tensors = lora_files.kohya(lora_files.random_pairs(SOME_NAMES, SHAPES, rank=1), SOME_NAMES, alpha=0.5)
    return {name: tensor for name, tensor in tensors.items() if not re.search(r"final_layer.*alpha", name)}


def kohya_separately_trained() -> Tensors:
    """Query, key and value are trained separately, so the up matrix of the fused layer is block-diagonal."""
    tensors = kohya()
    layer = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors[f"{layer}.lora_up.weight"] = lora_files.block_diagonal(tensors[f"{layer}.lora_up.weight"].chunk(3))
    tensors[f"{layer}.lora_down.weight"] = torch.randn(3, 3072, generator=torch.Generator().manual_seed(2))
    return tensors


def comfyui() -> Tensors:
    suffixes = {"lora_A": "lora_down", "lora_B": "lora_up"}
    pairs = lora_files.random_pairs(SOME_NAMES, SHAPES, rank=1)
    tensors = lora_files.bfl(pairs, SOME_NAMES, "diffusion_model.")
    return {re.sub("lora_[AB]", lambda match: suffixes[match[0]], name): tensor for name, tensor in tensors.items()}


def onetrainer() -> Tensors:
    """Attention layers only, because diffusers accepts no other layers of blocks with these names."""
    pairs = lora_files.random_pairs(SOME_NAMES, SHAPES, rank=1)
    attention = {layer: pairs[layer] for layer in pairs if ".attn." in layer}
    return lora_files.with_underscores(attention, "lora_transformer_", alpha=2)


def xlabs() -> Tensors:
    pairs = lora_files.random_pairs(SOME_NAMES, SHAPES, rank=1)
    return lora_files.xlabs(pairs, (0, 18), (0, 37))


def bfl_control() -> Tensors:
    """diffusers accepts these names only for a control LoRA, which has all layers and some norms."""
    scales = {
        f"double_blocks.{block}.{side}_attn.norm.{part}_norm.scale": torch.ones(128)
        for block in range(19)
        for side in ("img", "txt")
        for part in ("query", "key")
    }
    scales |= {
        f"single_blocks.{block}.norm.{part}_norm.scale": torch.ones(128)
        for block in range(38)
        for part in ("query", "key")
    }
    return lora_files.bfl(lora_files.random_pairs(ALL_NAMES, SHAPES, rank=2), ALL_NAMES) | scales


def bfl_in_peft() -> Tensors:
    names = lora_files.bfl_names(range(19), range(38), outer_layers=False) | {"final_layer.linear": ("proj_out",)}
    return lora_files.bfl(lora_files.random_pairs(names, SHAPES, rank=1), names, "base_model.model.")


@pytest.mark.parametrize(
    "make_tensors",
    [diffusers, kohya, kohya_separately_trained, comfyui, onetrainer, xlabs, bfl_control, bfl_in_peft],
)
def test_converted_weights_equal_those_of_diffusers(make_tensors: Callable[[], Tensors]) -> None:
    tensors = make_tensors()
    expected = dict(pairs_in(FluxLoraLoaderMixin.lora_state_dict(dict(tensors))))
    layers = StateDictConverter(FLUX, max_rank=16).convert(tensors, {}).transformer
    assert expected.keys() == layers.keys()
    for layer, (down, up) in expected.items():
        if make_tensors is bfl_control and layer == "norm_out.linear":
            continue  # diffusers also swaps the halves of the down matrix here, which changes the product.
        assert_equal_products(layers[layer], down, up)


def pairs_in(state_dict: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Pair]]:
    for name, down in state_dict.items():
        if name.endswith(".lora_A.weight"):
            up = state_dict[name.replace("lora_A", "lora_B")]
            yield name.removeprefix("transformer.").removesuffix(".lora_A.weight"), (down, up)


def assert_equal_products(low_rank: LowRank, down: torch.Tensor, up: torch.Tensor) -> None:
    """Compares the products with two vectors, because the full matrices would take gigabytes."""
    vectors = torch.randn(down.shape[1], 2, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(
        low_rank.scale * low_rank.up @ (low_rank.down @ vectors), up @ (down @ vectors), rtol=1e-4, atol=1e-4
    )


def test_converted_clip_weights_equal_those_of_diffusers_and_peft() -> None:
    clip = CLIPTextModel(
        CLIPTextConfig(num_hidden_layers=2, hidden_size=12, intermediate_size=20, num_attention_heads=4)
    )
    geometry = ModelGeometry.from_configs(FLUX_TRANSFORMER, clip.config.to_dict())
    tensors = lora_files.with_underscores(lora_files.clip_pairs(geometry), "lora_te1_text_model_", alpha=1.5)
    layers = StateDictConverter(geometry, max_rank=16).convert(tensors, {}).clip
    # Cloned, because diffusers' converter multiplies alpha into the tensors in place.
    state_dict = FluxLoraLoaderMixin.lora_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    FluxLoraLoaderMixin.load_lora_into_text_encoder(state_dict, None, clip, prefix="text_encoder", adapter_name="one")
    for layer, low_rank in layers.items():
        adapter = clip.get_submodule(layer)
        assert isinstance(adapter, Linear)
        torch.testing.assert_close(low_rank.scale * low_rank.up @ low_rank.down, adapter.get_delta_weight("one"))
    assert len(layers) == 12
