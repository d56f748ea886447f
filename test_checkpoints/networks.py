"""The four networks of a test checkpoint, with seeded weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from test_checkpoints import weights
from test_checkpoints.tokenizers import CLIP_TOKENS

LATENT_CHANNELS = 16
_PATCH = 2
"""FLUX packs squares of 2 by 2 latents into one token."""
_MIN_WIDTH = 2 * LATENT_CHANNELS * _PATCH**2
_SEED = 7


@dataclass(frozen=True, slots=True)
class Geometry:
    """Depths and widths. With the defaults, 1024x1024 pixels in 28 steps take seconds on one CPU thread."""

    double_blocks: int = 2
    single_blocks: int = 2
    heads: int = 2
    head_dim: int = 64
    rope_axes: tuple[int, int, int] = (8, 28, 28)
    """Channels of a head rotated by the token's index, row and column; their sum is `head_dim`."""
    text_width: int = 64
    pooled_width: int = 64
    text_layers: int = 2
    max_sequence_length: int = 128
    """Longest prompt in T5 tokens."""
    vae_widths: tuple[int, ...] = (8, 16, 16, 16)
    """Channels of each stage; every stage after the first halves both sides."""
    vae_layers: int = 1

    def __post_init__(self) -> None:
        if sum(self.rope_axes) != self.head_dim:
            raise ValueError(f"rope_axes {self.rope_axes} do not sum to head_dim {self.head_dim}")
        if self.heads * self.head_dim < _MIN_WIDTH:
            raise ValueError(
                f"heads * head_dim must be at least {_MIN_WIDTH} for the token and a constant in the residual stream"
            )

    @property
    def pixel_stride(self) -> int:
        """Pixels a side of one transformer token."""
        return int(_PATCH * 2 ** (len(self.vae_widths) - 1))


def transformer(geometry: Geometry, guided: bool) -> FluxTransformer2DModel:
    with _seeded(_SEED + guided):
        network = FluxTransformer2DModel(
            in_channels=LATENT_CHANNELS * _PATCH**2,
            num_layers=geometry.double_blocks,
            num_single_layers=geometry.single_blocks,
            attention_head_dim=geometry.head_dim,
            num_attention_heads=geometry.heads,
            joint_attention_dim=geometry.text_width,
            pooled_projection_dim=geometry.pooled_width,
            guidance_embeds=guided,
            axes_dims_rope=geometry.rope_axes,
        )
        weights.make_transformer_smooth(network)
    return network


def vae(geometry: Geometry) -> AutoencoderKL:
    stages = len(geometry.vae_widths)
    with _seeded(_SEED):
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=geometry.vae_widths,
            layers_per_block=geometry.vae_layers,
            norm_num_groups=min(geometry.vae_widths) // 2,
            latent_channels=LATENT_CHANNELS,
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        weights.make_vae_preserve_colours(network)
    return network


def clip(geometry: Geometry, vocabulary: int) -> CLIPTextModel:
    """Returns CLIP's text model with `vocabulary` tokens; its pooled output has `geometry.pooled_width` channels."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=geometry.pooled_width,
        projection_dim=geometry.pooled_width,
        intermediate_size=4 * geometry.pooled_width,
        num_hidden_layers=geometry.text_layers,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,  # FLUX's published value: transformers then pools at the highest id of a prompt.
    )
    with _seeded(_SEED):
        return CLIPTextModel(config)


def t5(geometry: Geometry, vocabulary: int) -> T5EncoderModel:
    """Returns T5's encoder with `vocabulary` tokens; its output has `geometry.text_width` channels."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=geometry.text_width,
        d_kv=geometry.text_width // 4,
        d_ff=2 * geometry.text_width,
        num_layers=geometry.text_layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    with _seeded(_SEED):
        return T5EncoderModel(config)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch within the block and restores the global random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
