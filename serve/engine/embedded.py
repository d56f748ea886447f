"""The embedded checkpoints: tiny FLUX models, made here from a seed, in the layout of the real repositories.

They stand in for the real ones wherever there is no GPU: the same classes, files and configuration, loaded by the same
code. Knows nothing of settings nor of how a checkpoint is used; anything that loads a diffusers folder can load these.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from serve.catalog import VARIANTS, VariantName
from serve.engine import embedded_models, embedded_tokenizers
from serve.engine.embedded_models import Geometry

_DISK_DTYPE = torch.bfloat16
_TRANSFORMER_SHARD = "2MB"
_log = logging.getLogger(__name__)


def ensure(variant: VariantName, cache_folder: Path, geometry: Geometry | None = None) -> Path:
    """The folder of the embedded checkpoint, built now if it is not in the cache.

    Processes may race: each builds beside the final folder and the first to rename wins. Raises OSError if the cache
    cannot be written.
    """
    geometry = geometry or Geometry()
    folder = cache_folder / "embedded" / f"{variant}-{_recipe_key(variant, geometry)}"
    if folder.is_dir():
        return folder
    _log.info("building the embedded %s checkpoint in %s", variant, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        built = Path(beside) / "checkpoint"
        build(variant, geometry, built)
        _move(built, folder)
    return folder


def build(variant: VariantName, geometry: Geometry, folder: Path) -> None:
    """Writes the checkpoint to `folder`. The same weights for the same arguments, whatever was drawn before."""
    guided = VARIANTS[variant].guided
    clip_tokenizer = embedded_tokenizers.clip_tokenizer()
    t5_tokenizer = embedded_tokenizers.t5_tokenizer(geometry.text_tokens)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(_scheduler_config(dynamic=guided)),
        vae=embedded_models.vae(geometry).to(_DISK_DTYPE),
        text_encoder=embedded_models.clip(geometry, len(clip_tokenizer)).to(_DISK_DTYPE),
        tokenizer=clip_tokenizer,
        text_encoder_2=embedded_models.t5(geometry, len(t5_tokenizer)).to(_DISK_DTYPE),
        tokenizer_2=t5_tokenizer,
        transformer=embedded_models.transformer(geometry, guided).to(_DISK_DTYPE),
    )
    pipeline.save_pretrained(folder, max_shard_size=_TRANSFORMER_SHARD)
    embedded_tokenizers.save_clip_tokenizer(folder / "tokenizer")


def _scheduler_config(dynamic: bool) -> dict[str, object]:
    """The schedules that FLUX was published with: [dev] shifts with the picture's size, [schnell] does not."""
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
    """Changes with everything that the weights depend on: this code, the geometry, the libraries that write them."""
    sources = [Path(str(module.__file__)) for module in (embedded_models, embedded_tokenizers)] + [Path(__file__)]
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
        shutil.rmtree(built)  # Another process was first, with the same bytes.
