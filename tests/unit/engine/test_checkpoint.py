"""What is loaded is what the settings say, or start-up fails with what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optimum.quanto import QLinear
from safetensors.torch import load_file, save_file

from serve.engine.checkpoint import MAX_LORA_SLOTS, Checkpoint, load_checkpoint
from serve.errors import ModelLoadError
from serve.settings import Dtypes, ModelSettings, PoolSettings, Settings
from test_checkpoints import checkpoint as test_checkpoint
from test_checkpoints.networks import Geometry
from tests.unit.engine.checkpoints import LORA_BYTES, Checkpoints

SHARD = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(cache: Path, tmp_path: Path) -> Path:
    """A checkpoint of [dev] that a test may spoil."""
    return Path(shutil.copytree(test_checkpoint.ensure("dev", cache), tmp_path / "checkpoint"))


def load_local(folder: Path, variant: Any = "dev", pool: PoolSettings | None = None, **fields: Any) -> Checkpoint:
    model = ModelSettings(**{"variant": variant, "source": str(folder), "max_sequence_length": 128} | fields)
    pool = pool or PoolSettings(model="dev")
    if "lora_bytes" not in pool.model_fields_set:
        pool = pool.model_copy(update={"lora_bytes": LORA_BYTES})
    return load_checkpoint(model, pool, None)


def test_the_embedded_source_is_the_model_that_comes_along() -> None:
    checkpoint = load_checkpoint(Settings().models["schnell"], PoolSettings(model=""), None)
    assert not checkpoint.guidance_embeds
    assert checkpoint.pixel_stride == 32


def test_its_facts_are_those_of_its_files(folder: Path) -> None:
    checkpoint = load_local(folder, max_sequence_length=100)
    assert (checkpoint.pixel_stride, checkpoint.max_sequence_length, checkpoint.guidance_embeds) == (16, 100, True)
    assert checkpoint.scheduler_config["use_dynamic_shifting"] is True
    assert checkpoint.device == torch.device("cpu")


def test_a_small_model_does_not_set_aside_what_a_large_one_needs(folder: Path) -> None:
    assert load_local(folder, pool=PoolSettings(model="", lora_bytes=10**12)).lora_slots.count == MAX_LORA_SLOTS


def test_networks_do_not_train(folder: Path) -> None:
    checkpoint = load_local(folder, pool=PoolSettings(model="", precision="fp8", quantize_t5=True))
    for network in (checkpoint.transformer, checkpoint.vae, checkpoint.clip, checkpoint.t5):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("pool", "transformer", "text", "vae"),
    [
        ({}, torch.bfloat16, torch.bfloat16, torch.float32),
        ({"precision": "float32"}, torch.float32, torch.float32, torch.float32),
        (
            {"dtypes": {"cpu": Dtypes(transformer="float32", text_encoders="bfloat16", vae="bfloat16")}},
            torch.float32,
            torch.bfloat16,
            torch.bfloat16,
        ),
    ],
)
def test_dtypes_are_those_of_the_pools_row_for_its_device(
    folder: Path, pool: dict[str, Any], transformer: torch.dtype, text: torch.dtype, vae: torch.dtype
) -> None:
    checkpoint = load_local(folder, pool=PoolSettings(model="", **pool))
    assert {parameter.dtype for parameter in checkpoint.transformer.parameters()} == {transformer}
    assert {parameter.dtype for parameter in checkpoint.clip.parameters()} == {text}
    assert {parameter.dtype for parameter in checkpoint.t5.parameters()} == {text}
    assert {parameter.dtype for parameter in checkpoint.vae.parameters()} == {vae}


@pytest.mark.parametrize(
    ("pool", "transformer", "text"),
    [({}, False, False), ({"precision": "fp8"}, True, False), ({"quantize_t5": True}, False, True)],
)
def test_the_pools_row_says_what_is_float8(folder: Path, pool: dict[str, Any], transformer: bool, text: bool) -> None:
    checkpoint = load_local(folder, pool=PoolSettings(model="", **pool))
    assert isinstance(checkpoint.transformer.proj_out, QLinear) is transformer
    assert isinstance(checkpoint.t5.encoder.block[0].layer[0].SelfAttention.q, QLinear) is text
    assert not any(isinstance(layer, QLinear) for layer in (*checkpoint.clip.modules(), *checkpoint.vae.modules()))


def test_a_vae_of_five_stages_doubles_the_pixel_stride(checkpoints: Checkpoints) -> None:
    assert checkpoints.get("dev", geometry=Geometry(vae_widths=(8, 16, 16, 16, 16))).pixel_stride == 32


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"pixel_stride": 32}, "its pixel stride is 16; set `pixel_stride: 16`"),
        ({"max_sequence_length": 129}, "it reads at most 128 text tokens; set `max_sequence_length: 128` or less"),
        ({"variant": "schnell"}, "it has a guidance embedding, so it is not schnell; correct `variant` or `source`"),
    ],
)
def test_settings_that_do_not_fit_the_files_are_refused(folder: Path, fields: dict[str, Any], advice: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load_local(folder, **fields)
    assert str(caught.value) == f"cannot use the model {folder}: {advice}"


def test_a_variant_is_not_given_longer_texts_than_it_was_trained_on(tmp_path: Path) -> None:
    source = test_checkpoint.ensure("schnell", tmp_path, Geometry(max_sequence_length=512))
    with pytest.raises(ModelLoadError, match="it reads at most 256 text tokens"):
        load_local(source, "schnell", max_sequence_length=512)
    assert load_local(source, "schnell", max_sequence_length=256).max_sequence_length == 256


@pytest.mark.parametrize(
    ("part", "from_geometry", "why"),
    [
        ("text_encoder_2", Geometry(text_width=96), "takes T5 texts of width 64, and gets 96"),
        ("text_encoder", Geometry(pooled_width=96), "takes CLIP texts of width 64, and gets 96"),
    ],
)
def test_parts_of_other_models_are_refused(
    cache: Path, folder: Path, part: str, from_geometry: Geometry, why: str
) -> None:
    shutil.rmtree(folder / part)
    shutil.copytree(test_checkpoint.ensure("dev", cache, from_geometry) / part, folder / part)
    with pytest.raises(ModelLoadError, match=f"{why}; its parts do not fit"):
        load_local(folder)


def _remove(path: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()

    return spoil


def _cut(path: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return spoil


def _drop(path: str, name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / path)
        del weights[name]
        save_file(weights, folder / path, {"format": "pt"})

    return spoil


def _widen(folder: Path) -> None:
    config = json.loads((folder / "transformer/config.json").read_text())
    (folder / "transformer/config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_remove("vae"), "it has no folder vae; give a checkpoint in diffusers' layout"),
        (_remove(SHARD), "it cannot be loaded: "),
        (_remove("tokenizer/vocab.json"), "it cannot be loaded: "),
        (_remove("text_encoder/config.json"), "it cannot be loaded: "),
        (_cut(SHARD), "it cannot be loaded: "),
        (_cut("text_encoder_2/model.safetensors"), "it cannot be loaded: "),
        (_cut("vae/config.json"), "it cannot be loaded: "),
        (_cut("tokenizer_2/tokenizer.json"), "it cannot be loaded: "),
        (_drop(SHARD, "proj_out.bias"), "transformer lacks 1 weights, the first is proj_out.bias"),
        (_drop("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"), "vae lacks 1 weights"),
        (_drop("text_encoder_2/model.safetensors", "encoder.final_layer_norm.weight"), "text_encoder_2 lacks 1"),
        (_widen, "it cannot be loaded: "),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(folder: Path, spoil: Callable[[Path], None], why: str) -> None:
    spoil(folder)
    with pytest.raises(ModelLoadError) as caught:
        load_local(folder)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_pool_without_a_gpu_is_refused(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="no GPU is visible here; set `device` to cpu"):
        load_local(folder, pool=PoolSettings(model="dev", device="cuda"))
