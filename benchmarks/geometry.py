"""Makes the checkpoints for the benchmarks: the embedded model, or networks of FLUX.1's size with random weights.

The large networks need no download. A step takes as long with random weights as with trained ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from serve.engine.checkpoint import Checkpoint, load_checkpoint, place_on_device
from serve.engine.quantize import quantize_to_float8
from serve.model_specs import MODEL_SPECS
from serve.settings import Device, ModelSettings, PoolSettings, Precision, Settings, cache_folder
from test_checkpoints import checkpoint as test_checkpoint
from test_checkpoints.networks import Geometry

GeometryName = Literal["embedded", "flux1-dev"]
GEOMETRIES: tuple[GeometryName, ...] = ("embedded", "flux1-dev")
FLUX1_DEV = {"guidance_embeds": True}
"""Arguments of diffusers' `FluxTransformer2DModel` for FLUX.1 [dev]. The defaults of all others are those of FLUX.1."""
FLUX1_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "eos_token_id": 2,
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
PIXEL_STRIDE = 16
Network = TypeVar("Network", bound=nn.Module)


def make_checkpoint(geometry: GeometryName, precision: Precision, device: Device) -> Checkpoint:
    """A checkpoint on `device`. `flux1-dev` needs the memory that `make_flux1_checkpoint` states."""
    pool = PoolSettings(model="dev", device=device, precision=precision)
    if geometry == "flux1-dev":
        return make_flux1_checkpoint(ModelSettings(variant="dev", max_sequence_length=512), pool)
    return load_checkpoint(Settings().models["dev"], pool, hf_token=None)


def make_small_checkpoint(model: ModelSettings, pool: PoolSettings) -> Checkpoint:
    """A test checkpoint with the variant and sequence length of `model`; its networks take seconds on a CPU."""
    geometry = Geometry(max_sequence_length=model.max_sequence_length)
    source = str(test_checkpoint.ensure(model.variant, cache_folder(Settings()), geometry))
    return load_checkpoint(model.model_copy(update={"source": source, "revision": None}), pool, hf_token=None)


def make_flux1_checkpoint(model: ModelSettings, pool: PoolSettings) -> Checkpoint:
    """All networks in the geometry of FLUX.1 with random weights, made on the pool's device.

    The tokenizers are those of a test checkpoint. Needs 34 GB of device memory in bf16. In fp8 it needs as much while
    it is made.
    """
    device = torch.device(pool.device)
    geometry = Geometry(max_sequence_length=model.max_sequence_length)
    folder = test_checkpoint.ensure(model.variant, cache_folder(Settings()), geometry)
    guidance_embeds = MODEL_SPECS[model.variant].guidance_embeds
    checkpoint = Checkpoint(
        transformer=random_transformer({"guidance_embeds": guidance_embeds}, "bf16", device),
        vae=_make_on(device, lambda: AutoencoderKL(**FLUX1_VAE)),
        clip=_make_on(device, lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L))),
        clip_tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        t5=_make_on(device, lambda: T5EncoderModel(T5Config(**T5_XXL))),
        t5_tokenizer=T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True),
        noise_scheduler_config=FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler", local_files_only=True),
        pixel_stride=PIXEL_STRIDE,
        max_sequence_length=model.max_sequence_length,
        guidance_embeds=guidance_embeds,
        device=device,
    )
    return place_on_device(checkpoint, pool)


def _make_on(device: torch.device, make: Callable[[], Network]) -> Network:
    """A network in bf16 in evaluation mode, initialised on `device` by its own class."""
    with _default_dtype(torch.bfloat16), torch.device(device):
        return make().eval().requires_grad_(False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def random_transformer(config: dict[str, Any], precision: Precision, device: torch.device) -> FluxTransformer2DModel:
    """A transformer with seeded random weights, created on `device`.

    The weights of a layer have a standard deviation of 1 / sqrt(inputs), so its outputs are about as large as its
    inputs.
    """
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**config)
    if precision != "float32":
        transformer.bfloat16()
    transformer = transformer.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in transformer.named_parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)
        else:
            weight.fill_(0 if name.endswith("bias") else 1)
    if precision == "fp8":
        quantize_to_float8(transformer, device)
    return transformer


def flops_per_pass(transformer: FluxTransformer2DModel, image_tokens: int, max_sequence_length: int) -> int:
    """Floating-point operations of one forward pass for one image; a multiply-add counts as two. Runs on `meta`."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        config = transformer.config
        FluxTransformer2DModel.from_config(config)(
            hidden_states=torch.empty(1, image_tokens, config.in_channels),
            encoder_hidden_states=torch.empty(1, max_sequence_length, config.joint_attention_dim),
            pooled_projections=torch.empty(1, config.pooled_projection_dim),
            timestep=torch.empty(1),
            guidance=torch.empty(1) if config.guidance_embeds else None,
            img_ids=torch.empty(image_tokens, 3),
            txt_ids=torch.empty(max_sequence_length, 3),
        )
    return int(counter.get_total_flops())
