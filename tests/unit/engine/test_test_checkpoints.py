"""Test checkpoints: published file layout, a working pipeline, and images with structure."""

import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from numpy.typing import NDArray
from safetensors.torch import load_file

from serve.engine.latents import LatentSpace
from serve.model_specs import MODEL_SPECS, VariantName
from serve.settings import Precision
from test_checkpoints import checkpoint as test_checkpoint
from test_checkpoints.networks import Geometry
from tests.unit.engine.checkpoints import FIVE_STAGES, Checkpoints
from tests.unit.engine.requests import make_image, make_request, run_request

FILES = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("variant", MODEL_SPECS)
def test_diffusers_pipeline_loads_checkpoint_and_generates(cache: Path, variant: VariantName) -> None:
    pipeline = FluxPipeline.from_pretrained(test_checkpoint.ensure(variant, cache), dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("a cat", width=48, height=32, num_inference_steps=2, max_sequence_length=128).images
    assert image.size == (48, 32)


@pytest.mark.parametrize("variant", MODEL_SPECS)
def test_files_and_configs_match_published_repository(cache: Path, variant: VariantName) -> None:
    folder = test_checkpoint.ensure(variant, cache)
    files = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    assert files.keys() == FILES
    assert sum(files.values()) < 8e6

    def read(file: str) -> dict[str, object]:
        config: dict[str, object] = json.loads((folder / file).read_text())
        return config

    guided = MODEL_SPECS[variant].guidance_embeds
    assert read("transformer/config.json")["guidance_embeds"] is guided
    assert read("scheduler/scheduler_config.json")["use_dynamic_shifting"] is guided
    assert read("scheduler/scheduler_config.json")["shift"] == (3.0 if guided else 1.0)
    vae = read("vae/config.json")
    assert (vae["latent_channels"], vae["scaling_factor"], vae["shift_factor"]) == (16, 0.3611, 0.1159)
    assert (vae["use_quant_conv"], vae["use_post_quant_conv"]) == (False, False)


def test_weight_names_match_published_repository(cache: Path) -> None:
    folder = test_checkpoint.ensure("dev", cache)
    names = load_file(folder / "text_encoder/model.safetensors").keys()
    assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert all(name.startswith("text_model.") for name in names)
    index = json.loads((folder / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert "single_transformer_blocks.0.proj_out.weight" in index["weight_map"]


def test_weights_do_not_depend_on_or_change_global_rng(tmp_path: Path) -> None:
    digests = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        test_checkpoint.build("dev", Geometry(), tmp_path / str(seed))
        assert torch.equal(torch.get_rng_state(), state)
        digests.append(_digests(tmp_path / str(seed)))
    assert digests[0] == digests[1]


def test_checkpoint_is_cached_per_variant_and_geometry(tmp_path: Path) -> None:
    folder = test_checkpoint.ensure("schnell", tmp_path)
    (folder / "mark").touch()
    assert (test_checkpoint.ensure("schnell", tmp_path) / "mark").exists()
    others = [
        test_checkpoint.ensure("dev", tmp_path),
        test_checkpoint.ensure("schnell", tmp_path, Geometry(max_sequence_length=64)),
    ]
    assert len({folder, *others}) == 3
    assert not any((other / "mark").exists() for other in others)


def test_concurrent_builds_end_with_one_complete_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_ensure_at_barrier, args=(tmp_path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (folder,) = (tmp_path / "tiny").iterdir()
    assert _digests(folder).keys() == FILES


def test_unwritable_cache_raises_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        test_checkpoint.ensure("dev", tmp_path / "file")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rope_axes": (8, 28, 20)}, "head_dim 64"), ({"heads": 1}, "128")],
)
def test_invalid_geometry_is_rejected(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("geometry", [Geometry(), FIVE_STAGES], ids=["four stages", "five stages"])
def test_vae_round_trip_preserves_image(checkpoints: Checkpoints, geometry: Geometry) -> None:
    space = LatentSpace(checkpoints.get("dev", geometry=geometry))
    image = make_image((256, 192))
    with torch.no_grad():
        latents = space.sample(space.encode(image), torch.Generator().manual_seed(0))
        decoded = space.decode(latents, space.grid((256, 192)), (256, 192)).numpy()
    assert 0.3 < latents.std() < 3
    assert np.corrcoef(image.ravel(), decoded.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_images_are_smooth_and_neither_grey_nor_noise(checkpoints: Checkpoints, precision: Precision) -> None:
    (image,) = run_request(checkpoints.get("dev", precision), make_request(size=(256, 256), steps=8)).pixels
    assert image.std() > 20
    assert np.isin(image, (0, 255)).mean() < 0.5
    assert _smooth_share(image) > 0.5
    noise = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    assert _smooth_share(noise) < 0.05


def test_prompt_seed_and_guidance_each_change_the_image(checkpoints: Checkpoints) -> None:
    changes: list[dict[str, Any]] = [{}, {"prompt": "a black cat"}, {"seeds": (8,)}, {"guidance": 9.0}]
    checkpoint = checkpoints.get("dev")
    images = {run_request(checkpoint, make_request(**change)).pixels[0].tobytes() for change in changes}
    assert len(images) == len(changes)


def _ensure_at_barrier(cache: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    test_checkpoint.ensure("dev", cache)


def _digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _smooth_share(image: NDArray[np.uint8]) -> float:
    """Share of an image's variance that remains after averaging over blocks of 16 by 16 pixels."""
    rows, columns, _ = image.shape
    blocks = image.reshape(rows // 16, 16, columns // 16, 16, 3).mean((1, 3))
    return float(blocks.var((0, 1)).mean() / image.var((0, 1)).mean())
