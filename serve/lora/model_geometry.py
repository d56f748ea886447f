"""Names and shapes of the linear layers that a LoRA can adapt, computed from a checkpoint's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_MLP_RATIO = 4
"""Widening of the MLPs. Hard-coded in diffusers' `FluxTransformer2DModel`, not in its configuration."""
_TIME_CHANNELS = 256
"""Channels of the sinusoidal time and guidance embeddings. Hard-coded in diffusers too."""

Shape = tuple[int, int]
"""Shape of a weight: `[outputs, inputs]`."""


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """Depths and widths of one model. Models with equal geometries accept the same LoRAs."""

    double_blocks: int
    single_blocks: int
    width: int
    in_channels: int
    out_channels: int
    text_width: int
    """Width of the T5 embeddings."""
    pooled_width: int
    """Width of the pooled CLIP embedding."""
    guidance_embeds: bool
    clip_blocks: int
    clip_width: int
    clip_mlp_width: int

    @classmethod
    def from_configs(cls, transformer: Mapping[str, Any], clip: Mapping[str, Any]) -> Self:
        """Reads the `config.json` of a `FluxTransformer2DModel` and of a `CLIPTextModel`."""
        return cls(
            double_blocks=transformer["num_layers"],
            single_blocks=transformer["num_single_layers"],
            width=transformer["num_attention_heads"] * transformer["attention_head_dim"],
            in_channels=transformer["in_channels"],
            out_channels=(transformer.get("out_channels") or transformer["in_channels"])
            * transformer.get("patch_size", 1) ** 2,
            text_width=transformer["joint_attention_dim"],
            pooled_width=transformer["pooled_projection_dim"],
            guidance_embeds=transformer["guidance_embeds"],
            clip_blocks=clip["num_hidden_layers"],
            clip_width=clip["hidden_size"],
            clip_mlp_width=clip["intermediate_size"],
        )

    def transformer_layers(self) -> dict[str, Shape]:
        """Every linear layer of the transformer, by its name in diffusers."""
        double = {
            f"transformer_blocks.{i}.{name}": shape
            for i in range(self.double_blocks)
            for name, shape in self._double_block_layers()
        }
        single = {
            f"single_transformer_blocks.{i}.{name}": shape
            for i in range(self.single_blocks)
            for name, shape in self._single_block_layers()
        }
        return double | single | self._outer_layers()

    def clip_layers(self) -> dict[str, Shape]:
        """Every linear layer of the CLIP text model, by its name in transformers."""
        width, mlp_width = self.clip_width, self.clip_mlp_width
        block = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        block |= {"mlp.fc1": (mlp_width, width), "mlp.fc2": (width, mlp_width)}
        return {f"encoder.layers.{i}.{name}": shape for i in range(self.clip_blocks) for name, shape in block.items()}

    def _double_block_layers(self) -> list[tuple[str, Shape]]:
        width, mlp_width = self.width, _MLP_RATIO * self.width
        attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        return [
            *((f"attn.{name}", (width, width)) for name in attention),
            *((f"{name}.linear", (6 * width, width)) for name in ("norm1", "norm1_context")),
            *((f"{name}.net.0.proj", (mlp_width, width)) for name in ("ff", "ff_context")),
            *((f"{name}.net.2", (width, mlp_width)) for name in ("ff", "ff_context")),
        ]

    def _single_block_layers(self) -> list[tuple[str, Shape]]:
        width, mlp_width = self.width, _MLP_RATIO * self.width
        return [
            *((f"attn.{name}", (width, width)) for name in ("to_q", "to_k", "to_v")),
            ("norm.linear", (3 * width, width)),
            ("proj_mlp", (mlp_width, width)),
            ("proj_out", (width, width + mlp_width)),
        ]

    def _outer_layers(self) -> dict[str, Shape]:
        """The layers before and after the blocks."""
        width = self.width
        embedders = {"timestep_embedder": _TIME_CHANNELS, "text_embedder": self.pooled_width}
        if self.guidance_embeds:
            embedders["guidance_embedder"] = _TIME_CHANNELS
        layers: dict[str, Shape] = {
            "x_embedder": (width, self.in_channels),
            "context_embedder": (width, self.text_width),
            "norm_out.linear": (2 * width, width),
            "proj_out": (self.out_channels, width),
        }
        for name, inputs in embedders.items():
            layers[f"time_text_embed.{name}.linear_1"] = (width, inputs)
            layers[f"time_text_embed.{name}.linear_2"] = (width, width)
        return layers
