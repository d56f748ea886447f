"""LoRAs with random weights, written with the tensor names of each trainer."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch

from serve.lora.model_geometry import ModelGeometry
from serve.lora.weights import LoraWeights, LowRank

Pair = tuple[torch.Tensor, torch.Tensor]
"""Down `[rank, in]` and up `[out, rank]`."""
Tensors = dict[str, torch.Tensor]

QKV, TEXT_QKV = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
DOUBLE_BLOCK = {
    "img_attn.qkv": QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": TEXT_QKV,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
SINGLE_BLOCK = {"linear1": (*QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)}
OUTER_LAYERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
XLABS_ATTENTION = {
    "img_attn.qkv": "qkv_lora1",
    "img_attn.proj": "proj_lora1",
    "txt_attn.qkv": "qkv_lora2",
    "txt_attn.proj": "proj_lora2",
}


def bfl_names(
    double_blocks: Iterable[int], single_blocks: Iterable[int], outer_layers: bool
) -> dict[str, tuple[str, ...]]:
    """The diffusers layers that each layer of Black Forest Labs' reference code fuses."""
    names = {
        f"double_blocks.{block}.{name}": tuple(f"transformer_blocks.{block}.{layer}" for layer in layers)
        for block in double_blocks
        for name, layers in DOUBLE_BLOCK.items()
    }
    names |= {
        f"single_blocks.{block}.{name}": tuple(f"single_transformer_blocks.{block}.{layer}" for layer in layers)
        for block in single_blocks
        for name, layers in SINGLE_BLOCK.items()
    }
    return names | ({name: (layer,) for name, layer in OUTER_LAYERS.items()} if outer_layers else {})


def random_pairs(
    names: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, int]],
    rank: int = 3,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Pair]:
    """Matrices by diffusers layer. Layers that are fused in `names` share their down matrix."""
    generator = torch.Generator().manual_seed(5)
    pairs = {}
    for layers in names.values():
        down = torch.randn(rank, shapes[layers[0]][1], generator=generator).to(dtype)
        for layer in layers:
            pairs[layer] = (down, torch.randn(shapes[layer][0], rank, generator=generator).to(dtype))
    return pairs


def transformer_pairs(geometry: ModelGeometry, rank: int = 3) -> dict[str, Pair]:
    names = bfl_names(range(geometry.double_blocks), range(geometry.single_blocks), outer_layers=True)
    return random_pairs(names, geometry.transformer_layers(), rank)


def clip_pairs(geometry: ModelGeometry, rank: int = 3) -> dict[str, Pair]:
    names = {name: (name,) for name in geometry.clip_layers()}
    return random_pairs(names, geometry.clip_layers(), rank)


def diffusers(pairs: Mapping[str, Pair], prefix: str = "transformer.") -> Tensors:
    return {
        f"{prefix}{layer}.lora_{side}.weight": matrix
        for layer, pair in pairs.items()
        for side, matrix in zip("AB", pair, strict=True)
    }


def bfl(pairs: Mapping[str, Pair], names: Mapping[str, tuple[str, ...]], prefix: str = "") -> Tensors:
    """Black Forest Labs' layer names with PEFT's suffixes."""
    return {
        f"{prefix}{name}.lora_{side}.weight": matrix
        for name, pair in fuse(pairs, names).items()
        for side, matrix in zip("AB", pair, strict=True)
    }


def kohya(pairs: Mapping[str, Pair], names: Mapping[str, tuple[str, ...]], alpha: float | None = None) -> Tensors:
    return with_underscores(fuse(pairs, names), "lora_unet_", alpha)


def with_underscores(pairs: Mapping[str, Pair], prefix: str, alpha: float | None = None) -> Tensors:
    """Layer names with underscores in place of dots, and kohya's suffixes."""
    tensors: Tensors = {}
    for name, (down, up) in pairs.items():
        layer = prefix + name.replace(".", "_")
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    return tensors


def xlabs(pairs: Mapping[str, Pair], double_blocks: Iterable[int], single_blocks: Iterable[int]) -> Tensors:
    """The layers that XLabs trains: attention, and the output of single blocks."""
    names = {
        f"double_blocks.{block}.processor.{name}": tuple(
            f"transformer_blocks.{block}.{layer}" for layer in DOUBLE_BLOCK[bfl_name]
        )
        for block in double_blocks
        for bfl_name, name in XLABS_ATTENTION.items()
    }
    for block in single_blocks:
        layers = f"single_transformer_blocks.{block}"
        names[f"single_blocks.{block}.processor.qkv_lora"] = tuple(f"{layers}.{layer}" for layer in QKV)
        names[f"single_blocks.{block}.processor.proj_lora"] = (f"{layers}.proj_out",)
    return {
        f"{name}.{side}.weight": matrix
        for name, pair in fuse(pairs, names).items()
        for side, matrix in zip(("down", "up"), pair, strict=True)
    }


def every_format(pairs: Mapping[str, Pair], names: Mapping[str, tuple[str, ...]]) -> dict[str, Tensors]:
    """The same LoRA in the formats that can express every layer. With alpha, its value is the rank."""
    alpha = next(iter(pairs.values()))[0].shape[0]
    return {
        "diffusers": diffusers(pairs),
        "diffusers, old suffixes": {
            name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): tensor
            for name, tensor in diffusers(pairs).items()
        },
        "diffusers without prefix": diffusers(pairs, ""),
        "PEFT": diffusers(pairs, "base_model.model."),
        "PEFT with adapter name": {
            name.replace(".weight", ".style_2.weight"): tensor
            for name, tensor in diffusers(pairs, "base_model.model.transformer.").items()
        },
        "ai-toolkit": diffusers(pairs, "diffusion_model."),
        "BFL": bfl(pairs, names),
        "BFL in ComfyUI": bfl(pairs, names, "diffusion_model."),
        "BFL in an all-in-one file": bfl(pairs, names, "model.diffusion_model."),
        "BFL in PEFT": bfl(pairs, names, "base_model.model."),
        "kohya": kohya(pairs, names),
        "kohya with alpha": kohya(pairs, names, alpha),
        "diffusers in kohya's spelling": with_underscores(pairs, "lora_unet_"),
        "OneTrainer": with_underscores(pairs, "lora_transformer_", alpha),
        "LyCORIS": with_underscores(pairs, "lycoris_", alpha),
    }


def fuse(pairs: Mapping[str, Pair], names: Mapping[str, tuple[str, ...]]) -> dict[str, Pair]:
    """Stacks the up matrices of fused layers."""
    fused = {
        name: (pairs[layers[0]][0], torch.cat([pairs[layer][1] for layer in layers])) for name, layers in names.items()
    }
    if "final_layer.adaLN_modulation.1" in fused:
        down, up = fused["final_layer.adaLN_modulation.1"]
        scale, shift = up.chunk(2)
        fused["final_layer.adaLN_modulation.1"] = (down, torch.cat([shift, scale]))
    return fused


def block_diagonal(blocks: Iterable[torch.Tensor]) -> torch.Tensor:
    listed = list(blocks)
    matrix = torch.zeros(sum(len(block) for block in listed), sum(block.shape[1] for block in listed))
    row = column = 0
    for block in listed:
        matrix[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return matrix


def weight_delta(low_rank: LowRank) -> torch.Tensor:
    """The change of the layer's weight, `[out, in]`, in float32."""
    return low_rank.scale * low_rank.up.float() @ low_rank.down.float()


def layer_delta(weights: LoraWeights, layer: str) -> torch.Tensor:
    """The change of the weight of a layer of the transformer, whether it is low-rank or a Kronecker product."""
    if kronecker := weights.kroneckers.get(f"transformer.{layer}"):
        full = kronecker.scale * torch.kron(kronecker.outer.float(), kronecker.inner.float())
        return full[kronecker.first_row : kronecker.first_row + kronecker.outputs]
    return weight_delta(weights.transformer[layer])


def assert_equal_weights(layers: Mapping[str, LowRank], pairs: Mapping[str, Pair], scale: float = 1.0) -> None:
    assert layers.keys() == pairs.keys()
    for layer, (down, up) in pairs.items():
        torch.testing.assert_close(weight_delta(layers[layer]), scale * up @ down, msg=partial("{}: {}".format, layer))
