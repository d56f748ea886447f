"""Imported bundled models: the base matches [dev] at guidance 1, and the students are unchanged."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from serve.model_specs import EMBEDDED_MODELS_FOLDER
from tests.training.base_models import random_embeds
from training import batches, import_weights, text_encoders
from training.flow_matching import TokenLayout, velocity
from training.students import make_student
from training.transformer import build, start_file

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    import_weights.import_weights(EMBEDDED_MODELS_FOLDER, runs)
    return runs


@pytest.fixture(scope="module")
def base(runs: Path) -> FluxTransformer2DModel:
    base = build()
    base.load_state_dict(torch.load(start_file(runs), weights_only=True))
    return base.requires_grad_(False).eval()


def bundled(variant: str) -> FluxTransformer2DModel:
    model: FluxTransformer2DModel = FluxTransformer2DModel.from_pretrained(
        EMBEDDED_MODELS_FOLDER / variant / "transformer"
    )
    return model.float().requires_grad_(False).eval()


def test_imported_base_matches_dev_at_guidance_1(base: FluxTransformer2DModel) -> None:
    torch.manual_seed(0)
    dev, latents, times, layout = bundled("dev"), torch.randn(4, 6, 64), torch.rand(4), TokenLayout(2, 3)
    predicted = velocity(base, latents, times, random_embeds(4), layout)
    plain, guided = (
        velocity(dev, latents, times, random_embeds(4), layout, torch.full((4,), scale)) for scale in (1.0, 5.0)
    )
    # They differ only by rounding to bfloat16.
    assert (predicted - plain).abs().mean() < 0.02 * plain.abs().mean()
    assert (predicted - guided).abs().mean() > 0.1 * plain.abs().mean()


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_imported_students_are_unchanged(runs: Path, base: FluxTransformer2DModel, variant: str) -> None:
    student = make_student(variant, base, runs).state_dict()
    for name, value in bundled(variant).state_dict().items():
        torch.testing.assert_close(student[name], value, atol=1e-5, rtol=1e-5)


def test_imported_autoencoder_and_encoders_load(runs: Path) -> None:
    vae = batches.load_vae(runs / "autoencoder" / "vae")
    assert vae.dtype == torch.float32
    tokens, pooled = text_encoders.load(runs / "text")(["a red cat"], 64)
    assert tokens.shape == (1, 64, 128)
    assert pooled.isfinite().all()
