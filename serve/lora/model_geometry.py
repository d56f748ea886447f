"""Names and shapes of the linear layers that a LoRA can adapt, computed from a checkpoint's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_MLP_RATIO = 4
"""Widening of FLUX's MLPs: stands in the code of diffusers' model, not in its configuration."""
_TIME_CHANNELS = 256
"""Channels of the sinusoidal embedding of times and guidance: in the code too."""

Shape = tuple[int, int]
"""Of a weight: outputs, inputs."""


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """Depths and widths of one model. Equal ones take the same LoRAs."""

    double_blocks: int
    single_blocks: int
    width: int
    in_channels: int
    out_channels: int
    text_width: int
    """Of T5's output."""
    pooled_width: int
    """Of CLIP's pooled output."""
    guidance_embeds: bool
    clip_blocks: int
    clip_width: int
    clip_mlp_width: int

    @classmethod
    def from_configs(cls, transformer: Mapping[str, Any], clip: Mapping[str, Any]) -> Self:
        """From the `config.json` of a FluxTransformer2DModel and of a CLIPTextModel."""
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
        """Every linear layer of the transformer, by the name that diffusers gives it."""
        layers = {f"transformer_blocks.{i}.{name}": s for i in range(self.double_blocks) for name, s in self._double()}
        layers |= {
            f"single_transformer_blocks.{i}.{name}": s for i in range(self.single_blocks) for name, s in self._single()
        }
        return layers | self._outside()

    def clip_layers(self) -> dict[str, Shape]:
        """Every linear layer of the CLIP text model, by the name that transformers gives it."""
        width, mlp = self.clip_width, self.clip_mlp_width
        one = {f"self_attn.{side}_proj": (width, width) for side in ("q", "k", "v", "out")}
        one |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
        return {f"encoder.layers.{i}.{name}": shape for i in range(self.clip_blocks) for name, shape in one.items()}

    def _double(self) -> list[tuple[str, Shape]]:
        width, mlp = self.width, _MLP_RATIO * self.width
        square = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        return [
            *((f"attn.{name}", (width, width)) for name in square),
            *((f"{name}.linear", (6 * width, width)) for name in ("norm1", "norm1_context")),
            *((f"{name}.net.0.proj", (mlp, width)) for name in ("ff", "ff_context")),
            *((f"{name}.net.2", (width, mlp)) for name in ("ff", "ff_context")),
        ]

    def _single(self) -> list[tuple[str, Shape]]:
        width, mlp = self.width, _MLP_RATIO * self.width
        return [
            *((f"attn.{name}", (width, width)) for name in ("to_q", "to_k", "to_v")),
            ("norm.linear", (3 * width, width)),
            ("proj_mlp", (mlp, width)),
            ("proj_out", (width, width + mlp)),
        ]

    def _outside(self) -> dict[str, Shape]:
        """The layers before and behind the blocks."""
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
