"""Loading of checkpoints: dtypes, quantization, and errors of damaged files and wrong settings."""

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
from serve.engine.float8_linear import Float8Linear, compute_dtype
from serve.errors import ModelLoadError
from serve.settings import Dtypes, ModelSettings, PoolSettings, Settings
from test_checkpoints import checkpoint as test_checkpoint
from test_checkpoints.networks import Geometry
from tests.unit.engine.checkpoints import LORA_BYTES, Checkpoints

BFLOAT16 = Dtypes(transformer="bfloat16", text_encoders="bfloat16", vae="float32")
SHARD = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(cache: Path, tmp_path: Path) -> Path:
    """A [dev] checkpoint that the test may damage."""
    return Path(shutil.copytree(test_checkpoint.ensure("dev", cache), tmp_path / "checkpoint"))


def load_local(folder: Path, variant: Any = "dev", pool: PoolSettings | None = None, **fields: Any) -> Checkpoint:
    model = ModelSettings(**{"variant": variant, "source": str(folder), "max_sequence_length": 128} | fields)
    pool = pool or PoolSettings(model="dev")
    if "lora_bytes" not in pool.model_fields_set:
        pool = pool.model_copy(update={"lora_bytes": LORA_BYTES})
    return load_checkpoint(model, pool, None)


def test_embedded_source_loads_the_embedded_checkpoint() -> None:
    checkpoint = load_checkpoint(Settings().models["schnell"], PoolSettings(model=""), None)
    assert not checkpoint.guidance_embeds
    assert checkpoint.pixel_stride == 32


def test_checkpoint_properties_come_from_its_files_and_settings(folder: Path) -> None:
    checkpoint = load_local(folder, max_sequence_length=100)
    assert (checkpoint.pixel_stride, checkpoint.max_sequence_length, checkpoint.guidance_embeds) == (16, 100, True)
    assert checkpoint.noise_scheduler_config["use_dynamic_shifting"] is True
    assert checkpoint.device == torch.device("cpu")


def test_number_of_lora_slots_is_limited(folder: Path) -> None:
    assert load_local(folder, pool=PoolSettings(model="", lora_bytes=10**12)).lora_slots.count == MAX_LORA_SLOTS


def test_networks_are_in_eval_mode_without_gradients(folder: Path) -> None:
    checkpoint = load_local(folder, pool=PoolSettings(model="", precision="fp8", quantize_t5=True))
    for network in (checkpoint.transformer, checkpoint.vae, checkpoint.clip, checkpoint.t5):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("pool", "transformer", "text_encoders", "vae"),
    [
        ({"dtypes": {"cpu": BFLOAT16}}, torch.bfloat16, torch.bfloat16, torch.float32),
        ({"precision": "float32"}, torch.float32, torch.float32, torch.float32),
        (
            {"dtypes": {"cpu": Dtypes(transformer="float32", text_encoders="bfloat16", vae="bfloat16")}},
            torch.float32,
            torch.bfloat16,
            torch.bfloat16,
        ),
    ],
)
def test_networks_have_the_dtypes_of_the_pool(
    folder: Path, pool: dict[str, Any], transformer: torch.dtype, text_encoders: torch.dtype, vae: torch.dtype
) -> None:
    checkpoint = load_local(folder, pool=PoolSettings(model="", **pool))
    assert {parameter.dtype for parameter in checkpoint.transformer.parameters()} == {transformer}
    assert {parameter.dtype for parameter in checkpoint.clip.parameters()} == {text_encoders}
    assert {parameter.dtype for parameter in checkpoint.t5.parameters()} == {text_encoders}
    assert {parameter.dtype for parameter in checkpoint.vae.parameters()} == {vae}


@pytest.mark.parametrize(
    ("pool", "transformer", "t5"),
    [({}, False, False), ({"precision": "fp8"}, True, False), ({"quantize_t5": True}, False, True)],
)
def test_pool_selects_the_networks_quantized_to_float8(
    folder: Path, pool: dict[str, Any], transformer: bool, t5: bool
) -> None:
    checkpoint = load_local(folder, pool=PoolSettings(model="", dtypes={"cpu": BFLOAT16}, **pool))
    assert isinstance(checkpoint.transformer.proj_out, QLinear) is transformer
    assert isinstance(checkpoint.t5.encoder.block[0].layer[0].SelfAttention.q, QLinear) is t5
    assert not any(isinstance(layer, QLinear) for layer in (*checkpoint.clip.modules(), *checkpoint.vae.modules()))


@pytest.mark.parametrize("chosen", [torch.bfloat16, torch.float32])
def test_auto_dtype_is_the_fast_one_with_the_same_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chosen: torch.dtype
) -> None:
    expected = load_local(folder, pool=PoolSettings(model="", dtypes={"cpu": BFLOAT16}))
    monkeypatch.setattr("serve.engine.checkpoint.choose_compute_dtype", lambda device, width: chosen)
    checkpoint = load_local(folder)
    assert checkpoint.vae.dtype == torch.float32
    for network in ("transformer", "clip", "t5"):
        weights, expected_weights = (dict(getattr(each, network).named_parameters()) for each in (checkpoint, expected))
        assert {weight.dtype for weight in weights.values()} == {chosen}
        assert all(torch.equal(weights[name], weight.to(chosen)) for name, weight in expected_weights.items())


def test_nothing_is_measured_without_the_dtype_auto(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.engine.checkpoint.choose_compute_dtype", None)
    checkpoint = load_local(folder, pool=PoolSettings(model="", precision="float32"))
    assert checkpoint.transformer.dtype == torch.float32


def test_float8_weights_are_stored_in_float32_where_that_is_fast(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fp8 = PoolSettings(model="", precision="fp8", quantize_t5=True)
    quantized = load_local(folder, pool=fp8.model_copy(update={"dtypes": {"cpu": BFLOAT16}}))
    monkeypatch.setattr("serve.engine.checkpoint.choose_compute_dtype", lambda device, width: torch.float32)
    checkpoint = load_local(folder, pool=fp8)
    for network in ("transformer", "t5"):
        layers, quantized_layers = (dict(getattr(each, network).named_modules()) for each in (checkpoint, quantized))
        for name, layer in quantized_layers.items():
            if isinstance(layer, QLinear):
                assert type(layers[name]) is torch.nn.Linear
                assert torch.equal(layers[name].weight, layer.weight.dequantize().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rowwise_kernel_is_emulated_on_a_cpu_in_every_compute_dtype(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("serve.engine.checkpoint.choose_compute_dtype", lambda device, width: dtype)
    plain = load_local(folder)
    checkpoint = load_local(
        folder, pool=PoolSettings(model="", precision="fp8", fp8_kernel="rowwise", quantize_t5=True)
    )
    layer = checkpoint.transformer.transformer_blocks[0].attn.to_q
    assert isinstance(layer, Float8Linear)
    assert checkpoint.transformer.dtype == compute_dtype(layer) == layer.bias.dtype == dtype
    inputs = torch.ones(1, 2, layer.in_features, dtype=dtype)
    expected = plain.transformer.transformer_blocks[0].attn.to_q(inputs)
    assert 0 < (layer(inputs) - expected).norm() < 0.1 * expected.norm()
    assert checkpoint.lora_slots.count == plain.lora_slots.count
    assert not any(isinstance(layer, Float8Linear) for layer in checkpoint.t5.modules())


def test_vae_with_five_stages_doubles_the_pixel_stride(checkpoints: Checkpoints) -> None:
    assert checkpoints.get("dev", geometry=Geometry(vae_widths=(8, 16, 16, 16, 16))).pixel_stride == 32


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"pixel_stride": 32}, "`pixel_stride: 16`"),
        ({"max_sequence_length": 129}, "`max_sequence_length: 128`"),
        ({"variant": "schnell"}, "`variant`"),
    ],
)
def test_settings_that_contradict_the_files_raise_model_load_error(
    folder: Path, fields: dict[str, Any], fix: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load_local(folder, **fields)
    assert caught.value.source == str(folder)
    assert fix in caught.value.why


def test_sequence_length_is_limited_by_the_variant(tmp_path: Path) -> None:
    source = test_checkpoint.ensure("schnell", tmp_path, Geometry(max_sequence_length=512))
    with pytest.raises(ModelLoadError, match="`max_sequence_length: 256`"):
        load_local(source, "schnell", max_sequence_length=512)
    assert load_local(source, "schnell", max_sequence_length=256).max_sequence_length == 256


@pytest.mark.parametrize(
    ("part", "other_geometry", "network"),
    [
        ("text_encoder_2", Geometry(text_width=96), "T5"),
        ("text_encoder", Geometry(pooled_width=96), "CLIP"),
    ],
)
def test_text_encoder_of_another_width_raises_model_load_error(
    cache: Path, folder: Path, part: str, other_geometry: Geometry, network: str
) -> None:
    shutil.rmtree(folder / part)
    shutil.copytree(test_checkpoint.ensure("dev", cache, other_geometry) / part, folder / part)
    with pytest.raises(ModelLoadError, match=f"{network}.* 64, .* 96"):
        load_local(folder)


def _remove(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()

    return damage


def _truncate(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return damage


def _delete_weight(path: str, name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / path)
        del weights[name]
        save_file(weights, folder / path, {"format": "pt"})

    return damage


def _change_width(folder: Path) -> None:
    config = json.loads((folder / "transformer/config.json").read_text())
    (folder / "transformer/config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_remove("vae"), "folder vae"),
        (_remove(SHARD), "cannot be read"),
        (_remove("tokenizer/vocab.json"), "cannot be read"),
        (_remove("text_encoder/config.json"), "cannot be read"),
        (_truncate(SHARD), "cannot be read"),
        (_truncate("text_encoder_2/model.safetensors"), "cannot be read"),
        (_truncate("vae/config.json"), "cannot be read"),
        (_truncate("tokenizer_2/tokenizer.json"), "cannot be read"),
        (_delete_weight(SHARD, "proj_out.bias"), "proj_out.bias"),
        (_delete_weight("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"), "decoder.conv_in.bias"),
        (
            _delete_weight("text_encoder_2/model.safetensors", "encoder.final_layer_norm.weight"),
            "encoder.final_layer_norm.weight",
        ),
        (_change_width, "cannot be read"),
    ],
)
def test_damaged_checkpoint_raises_one_line_model_load_error(
    folder: Path, damage: Callable[[Path], None], why: str
) -> None:
    damage(folder)
    with pytest.raises(ModelLoadError) as caught:
        load_local(folder)
    assert why in caught.value.why
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_pool_without_gpu_raises_model_load_error(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="`device` to cpu"):
        load_local(folder, pool=PoolSettings(model="dev", device="cuda"))
