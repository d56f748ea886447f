"""diffusers' own converters, which know the true geometry only, read the same weights out of the same files."""

import re
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from diffusers.loaders import FluxLoraLoaderMixin
from peft.tuners.lora.layer import Linear
from transformers import CLIPTextConfig, CLIPTextModel

from serve.lora.convert import StateDictConverter
from serve.lora.model_geometry import ModelGeometry
from serve.lora.weights import LowRank
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import TRUE, TRUE_TRANSFORMER
from tests.unit.lora.lora_files import Pair, Tensors

FEW = lora_files.bfl_names((0, 18), (0, 37), outside=True)
ALL = lora_files.bfl_names(range(19), range(38), outside=True)
SHAPES = TRUE.transformer_layers()


def kohya() -> Tensors:
    """Without alpha for the last layers, for which diffusers forgets it."""
    tensors = lora_files.kohya(lora_files.random_pairs(FEW, SHAPES, rank=1), FEW, alpha=0.5)
    return {name: tensor for name, tensor in tensors.items() if not re.search(r"final_layer.*alpha", name)}


def kohya_of_layers_trained_apart() -> Tensors:
    """The ranks of query, key and value, each with zeros for the others."""
    tensors = kohya()
    layer = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors[f"{layer}.lora_up.weight"] = lora_files.diagonal(tensors[f"{layer}.lora_up.weight"].chunk(3))
    tensors[f"{layer}.lora_down.weight"] = torch.randn(3, 3072, generator=torch.Generator().manual_seed(2))
    return tensors


def comfy() -> Tensors:
    endings = {"lora_A": "lora_down", "lora_B": "lora_up"}
    tensors = lora_files.bfl(lora_files.random_pairs(FEW, SHAPES, rank=1), FEW, "diffusion_model.")
    return {re.sub("lora_[AB]", lambda match: endings[match[0]], name): tensor for name, tensor in tensors.items()}


def mixture() -> Tensors:
    """Attention in OneTrainer's way, the only layers of blocks for which diffusers knows those names."""
    pairs = lora_files.random_pairs(FEW, SHAPES, rank=1)
    return lora_files.flat({layer: pairs[layer] for layer in pairs if ".attn." in layer}, "lora_transformer_", alpha=2)


def xlabs() -> Tensors:
    pairs = lora_files.random_pairs(FEW, SHAPES, rank=1)
    return lora_files.xlabs(pairs, (0, 18), (0, 37))


def bfl_control() -> Tensors:
    """diffusers takes these names as those of a control LoRA only, which has all layers and some norms."""
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
    return lora_files.bfl(lora_files.random_pairs(ALL, SHAPES, rank=2), ALL) | scales


def bfl_in_peft() -> Tensors:
    blocks = lora_files.bfl_names(range(19), range(38), outside=False)
    pairs = lora_files.random_pairs(blocks | {"final_layer.linear": ("proj_out",)}, SHAPES, rank=1)
    return lora_files.bfl(pairs, blocks | {"final_layer.linear": ("proj_out",)}, "base_model.model.")


def plain() -> Tensors:
    return lora_files.diffusers(lora_files.random_pairs(FEW, SHAPES, rank=1))


@pytest.mark.parametrize(
    "make", [plain, kohya, kohya_of_layers_trained_apart, comfy, mixture, xlabs, bfl_control, bfl_in_peft]
)
def test_the_converters_agree_at_the_true_geometry(make: Callable[[], Tensors]) -> None:
    tensors = make()
    theirs = dict(pairs_of(FluxLoraLoaderMixin.lora_state_dict(dict(tensors))))
    ours = StateDictConverter(TRUE, max_rank=16).convert(tensors, {}).transformer
    assert theirs.keys() == ours.keys()
    for layer, (down, up) in theirs.items():
        if make is bfl_control and layer == "norm_out.linear":
            continue  # diffusers swaps the halves of the rank here as well, which is another product.
        assert_equal_products(ours[layer], down, up)


def pairs_of(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Pair]]:
    for name, down in state.items():
        if name.endswith(".lora_A.weight"):
            up = state[name.replace("lora_A", "lora_B")]
            yield name.removeprefix("transformer.").removesuffix(".lora_A.weight"), (down, up)


def assert_equal_products(found: LowRank, down: torch.Tensor, up: torch.Tensor) -> None:
    """Compared by what they make of two vectors: the products themselves would take gigabytes."""
    probes = torch.randn(down.shape[1], 2, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(
        found.scale * found.up @ (found.down @ probes), up @ (down @ probes), rtol=1e-4, atol=1e-4
    )


def test_the_text_encoder_gets_what_diffusers_and_peft_give_it() -> None:
    clip = CLIPTextModel(
        CLIPTextConfig(num_hidden_layers=2, hidden_size=12, intermediate_size=20, num_attention_heads=4)
    )
    geometry = ModelGeometry.from_configs(TRUE_TRANSFORMER, clip.config.to_dict())
    tensors = lora_files.flat(lora_files.clip_pairs(geometry), "lora_te1_text_model_", alpha=1.5)
    ours = StateDictConverter(geometry, max_rank=16).convert(tensors, {}).clip
    # The converter multiplies alpha into the very tensors that it is given.
    theirs = FluxLoraLoaderMixin.lora_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    FluxLoraLoaderMixin.load_lora_into_text_encoder(theirs, None, clip, prefix="text_encoder", adapter_name="one")
    for layer, low_rank in ours.items():
        adapter = clip.get_submodule(layer)
        assert isinstance(adapter, Linear)
        torch.testing.assert_close(low_rank.scale * low_rank.up @ low_rank.down, adapter.get_delta_weight("one"))
    assert len(ours) == 12
