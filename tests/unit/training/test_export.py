"""The export: two folders that diffusers loads as they are, with shared parts stored once."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline

from training import autoencoder, export, text
from training.run import Average
from training.transformer import build


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that have only begun, exported."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    AutoencoderKL(**autoencoder.CONFIG, shift_factor=0.1, scaling_factor=0.8).save_pretrained(
        runs / "autoencoder" / "vae"
    )
    (runs / "text").mkdir()
    torch.save(text.Encoders().state_dict(), runs / "text" / "encoders.pt")
    for variant in ("dev", "schnell"):
        (runs / variant).mkdir()
        average = Average(build(guided=variant == "dev"), 0.9)
        torch.save({"parts": {"average": average.state_dict()}}, runs / variant / "run.pt")
    export.write(runs, out)
    return out


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_diffusers_loads_and_draws_with_it(exported: Path, variant: str) -> None:
    pipeline = FluxPipeline.from_pretrained(exported / variant, dtype=torch.float32)
    assert pipeline.transformer.config.guidance_embeds is (variant == "dev")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red cat", width=64, height=96, num_inference_steps=2, max_sequence_length=64).images[0]
    assert picture.size == (64, 96)


def test_shared_parts_are_stored_once(exported: Path) -> None:
    weights = {path.resolve() for path in exported.rglob("*.safetensors")}
    assert len(weights) == 5


def test_all_weights_fit_the_budget(exported: Path) -> None:
    assert export.weight_bytes(exported) <= 40e6
