"""Short training of the base model, [dev], [schnell] and a LoRA, one after another, on the smallest canvas."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file

from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.model_geometry import ModelGeometry
from training import autoencoder, batches, distil, lora, text_encoders, training_run, transformer
from training.curriculum import STEADY, DatasetConfig, Stage
from training.flow_matching import flow_loss
from training.hardware import CPU, Machine

pytestmark = [
    pytest.mark.filterwarnings("ignore:Mismatch dtype"),
    pytest.mark.slow_training,
    pytest.mark.usefixtures("float32_training"),
]
STAGES = (Stage(1.0, {"tiny": 1.0}, {"smallest": 1.0}),)
STEPS, STUDENT_STEPS = 30, 6
"""The clock ticks one second per step, so that the number of steps does not depend on the machine."""


@pytest.fixture(scope="module", autouse=True)
def _tiny_datasets(float32_training: None) -> Iterator[None]:
    ticks = count()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Machine, "clock", lambda _: float(next(ticks)))
        monkeypatch.setattr(training_run, "LOG_EVERY_STEPS", 10)
        monkeypatch.setattr(batches, "DATASETS", {"tiny": DatasetConfig(STEADY, 4)})
        monkeypatch.setattr(batches, "TOKENS_PER_BATCH", 256)
        monkeypatch.setattr(batches, "NEW_PER_BATCH", 1)
        monkeypatch.setattr(lora, "ANY_CANVAS", {"smallest": 1.0})
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained autoencoder, untrained encoders, and a base model trained with them."""
    runs = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    vae = AutoencoderKL(**autoencoder.CONFIG, shift_factor=0.1, scaling_factor=0.8)
    vae.save_pretrained(runs / "autoencoder" / "vae")
    (runs / "text").mkdir()
    torch.save(text_encoders.Encoders().state_dict(), runs / "text" / "encoders.pt")
    transformer.train(runs, STEPS / 60, 0, STAGES, 2e-3, CPU)
    return runs


@pytest.fixture(scope="module")
def dev(runs: Path) -> FluxTransformer2DModel:
    distil.train("dev", runs, STUDENT_STEPS / 60, 0, STAGES, 1e-3, CPU)
    return transformer.load(runs / "dev", guided=True)


@torch.no_grad()
def loss_of(model: FluxTransformer2DModel, runs: Path, batch_count: int = 32) -> float:
    """Mean loss over `batch_count` batches with the same images, noise and times for every model."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    source = batches.BatchSource(runs, rng, STAGES, CPU)
    losses = []
    for _ in range(batch_count):
        batch = source.batch(0.0)
        losses.append(flow_loss(model, batch.latents, source.encode_prompts(batch.prompts(rng)), batch.layout).item())
    return sum(losses) / batch_count


def test_base_training_reduces_loss(runs: Path) -> None:
    base = transformer.load(runs / "transformer")
    assert loss_of(base, runs) < 0.99 * loss_of(transformer.build(), runs)
    assert base.config.guidance_embeds is False


def test_dev_is_distilled_from_base(dev: FluxTransformer2DModel) -> None:
    assert dev.config.guidance_embeds is True


def test_schnell_is_distilled_from_base(runs: Path) -> None:
    distil.train("schnell", runs, STUDENT_STEPS / 60, 0, STAGES, 1e-3, CPU)
    assert transformer.load(runs / "schnell").config.guidance_embeds is False


def test_finished_run_does_not_restart(runs: Path) -> None:
    before = (runs / "transformer" / "log.csv").read_text()
    transformer.train(runs, STEPS / 60, 0, STAGES, 2e-3, CPU)
    assert (runs / "transformer" / "log.csv").read_text() == before


def test_lora_is_trained_and_converted_by_the_service(runs: Path, dev: FluxTransformer2DModel) -> None:
    config = replace(lora.STYLE_CONFIGS["sketch"], images=4, batch=2)
    lora.train("sketch", config, runs, STUDENT_STEPS / 60, 0, 1e-3, CPU)
    file = runs / "lora-sketch" / "sketch.safetensors"
    geometry = ModelGeometry.from_configs(dev.config, text_encoders.clip().config.to_dict())
    weights = StateDictConverter(geometry, max_rank=lora.RANK).convert(load_file(file), {})
    assert weights.unapplied == ()
    assert "single_transformer_blocks.5.proj_out" in weights.transformer
    assert "proj_out" not in weights.transformer
    assert any(low_rank.up.any() for low_rank in weights.transformer.values())
    assert file.stat().st_size < 1e6
