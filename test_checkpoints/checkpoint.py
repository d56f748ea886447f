"""Builds test checkpoints of any geometry from a seed, in the layout of the published repositories.

Classes, files and configuration match those of FLUX.1, so diffusers can load them.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from serve.model_specs import MODEL_SPECS, VariantName
from test_checkpoints import networks, tokenizers, weights
from test_checkpoints.networks import Geometry

_TRANSFORMER_SHARD = "2MB"
MODEL_INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": diffusers.__version__,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_log = logging.getLogger(__name__)


def ensure(variant: VariantName, cache_folder: Path, geometry: Geometry | None = None) -> Path:
    """Returns the checkpoint's folder; builds it if it is not in the cache.

    Safe for concurrent processes: each builds a temporary folder, and the first rename wins. Raises OSError if the
    cache cannot be written.
    """
    geometry = geometry or Geometry()
    folder = cache_folder / "tiny" / f"{variant}-{_recipe_key(variant, geometry)}"
    if folder.is_dir():
        return folder
    _log.info("building the %s test checkpoint in %s", variant, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        built = Path(temporary) / "checkpoint"
        build(variant, geometry, built)
        _move(built, folder)
    return folder


def build(variant: VariantName, geometry: Geometry, folder: Path) -> None:
    """Writes the checkpoint to `folder`. Equal arguments give equal weights, whatever the global random state."""
    guided = MODEL_SPECS[variant].guidance_embeds
    tokenizer = tokenizers.t5_tokenizer(geometry.max_sequence_length)
    with _no_progress_bars():
        tokenizers.save_clip_tokenizer(folder / "tokenizer")
        tokenizer.save_pretrained(folder / "tokenizer_2")
        networks.clip(geometry, len(tokenizers.clip_tokenizer())).bfloat16().save_pretrained(folder / "text_encoder")
        networks.t5(geometry, len(tokenizer)).bfloat16().save_pretrained(folder / "text_encoder_2")
        networks.vae(geometry).bfloat16().save_pretrained(folder / "vae")
        networks.transformer(geometry, guided).bfloat16().save_pretrained(
            folder / "transformer", max_shard_size=_TRANSFORMER_SHARD
        )
    _prefix_weights(folder / "text_encoder/model.safetensors", "text_model.")
    FlowMatchEulerDiscreteScheduler(**_schedule(dynamic=guided)).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")


def _prefix_weights(file: Path, prefix: str) -> None:
    """Adds `prefix` to all tensor names, as in the published text encoder."""
    tensors = load_file(file)
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, file, {"format": "pt"})


def _schedule(dynamic: bool) -> dict[str, object]:
    """Returns FLUX's published scheduler settings: [dev] shifts with the image size, [schnell] does not."""
    return {
        "num_train_timesteps": 1000,
        "shift": 3.0 if dynamic else 1.0,
        "use_dynamic_shifting": dynamic,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    }


def _recipe_key(variant: VariantName, geometry: Geometry) -> str:
    """Hashes everything that determines the weights: this code, the geometry and the library versions."""
    sources = [Path(str(module.__file__)) for module in (networks, tokenizers, weights)] + [Path(__file__)]
    recipe = {
        "variant": variant,
        "geometry": asdict(geometry),
        "sources": [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources],
        "libraries": [torch.__version__, diffusers.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _move(built: Path, folder: Path) -> None:
    try:
        built.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(built)  # Another process was first and wrote the same bytes.


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Disables the libraries' progress bar for each written file."""
    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()
