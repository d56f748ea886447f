"""The exported models: diffusers and the engine load them, and shared parts are stored once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from PIL import Image

from serve.model_specs import EMBEDDED_LORAS, VariantName
from training import autoencoder, export, lora, text_encoders
from training.evaluation.generator import ImageGenerator, ImageRequest
from training.training_run import Average
from training.transformer import build


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports untrained weights."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    AutoencoderKL(**autoencoder.CONFIG, shift_factor=0.1, scaling_factor=0.8).save_pretrained(
        runs / "autoencoder" / "vae"
    )
    (runs / "text").mkdir()
    torch.save(text_encoders.Encoders().state_dict(), runs / "text" / "encoders.pt")
    for variant in ("dev", "schnell"):
        (runs / variant).mkdir()
        average = Average(build(guided=variant == "dev"), 0.9)
        torch.save({"parts": {"average": average.state_dict()}}, runs / variant / "run.pt")
    for name in EMBEDDED_LORAS:
        model = build(guided=True)
        lora.add_lora(model)
        lora.save(model, lora.lora_file(runs, name))
    export.write(runs, out)
    return out


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_diffusers_loads_export_and_generates(exported: Path, variant: str) -> None:
    pipeline = FluxPipeline.from_pretrained(exported / variant, dtype=torch.float32)
    assert pipeline.transformer.config.guidance_embeds is (variant == "dev")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red cat", width=64, height=96, num_inference_steps=2, max_sequence_length=64).images[0]
    assert image.size == (64, 96)


def test_shared_parts_are_stored_once(exported: Path) -> None:
    weights = {path.resolve() for path in exported.rglob("*.safetensors")}
    assert len(weights) == 5 + len(EMBEDDED_LORAS)


def test_every_bundled_lora_has_a_config() -> None:
    assert lora.STYLE_CONFIGS.keys() == set(EMBEDDED_LORAS)


def test_export_is_at_most_40_mb(exported: Path) -> None:
    assert export.weight_bytes(exported) <= 40e6


@pytest.mark.parametrize(("variant", "guidance"), [("dev", 3.0), ("schnell", None)])
def test_engine_generates_and_inpaints_with_export(
    exported: Path, variant: VariantName, guidance: float | None
) -> None:
    blank, mask = Image.new("RGB", (96, 64), "white"), np.zeros((64, 96), np.uint8)
    mask[:, 48:] = 255
    text_to_image = ImageRequest("a red cat", 1, (96, 64), 2, guidance)
    inpainting = ImageRequest("a red cat", 1, (96, 64), 2, guidance, blank, 1.0, mask)
    with ImageGenerator(variant, str(exported / variant), "bf16") as generator:
        generated, inpainted = (np.array(image) for image in generator.generate([text_to_image, inpainting]))
    assert generated.shape == inpainted.shape == (64, 96, 3)
    assert (inpainted[:, :48] == 255).all()
    assert (inpainted[:, 48:] != 255).any()
