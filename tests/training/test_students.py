"""Students start as their base or with an imported delta, and learn from the guided base."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.training.base_models import nonzero_base, random_embeds, zero_embeds
from training import students
from training.distil import step_loss
from training.flow_matching import TokenLayout, velocity
from training.import_weights import delta_file, weight_delta
from training.student_rollout import Rollout
from training.students import STUDENT_CONFIGS, Conditioning, dev_from, make_student, schnell_from

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")
LAYOUT = TokenLayout(2, 2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def conditioning(count: int, guidance: float) -> Conditioning:
    return Conditioning(random_embeds(count), zero_embeds(count), LAYOUT, torch.full((count,), guidance))


def test_fresh_dev_matches_base_at_any_guidance(base: FluxTransformer2DModel) -> None:
    dev, latents, times = dev_from(base), torch.randn(2, 4, 64), torch.rand(2)
    expected = velocity(base, latents, times, random_embeds(2), LAYOUT)
    for guidance in (1.0, 5.0):
        torch.testing.assert_close(
            velocity(dev, latents, times, random_embeds(2), LAYOUT, torch.full((2,), guidance)), expected
        )


@pytest.mark.parametrize(("guidance", "is_zero"), [(1.0, True), (3.0, False)])
def test_fresh_dev_has_loss_only_from_guidance(base: FluxTransformer2DModel, guidance: float, is_zero: bool) -> None:
    config = STUDENT_CONFIGS["dev"]
    interval = Rollout(torch.randn(8, 4, 64), config.single_interval(8, 4)).interval
    loss, _ = step_loss(dev_from(base), base, config, interval, conditioning(8, guidance))
    assert (loss < 2e-5) == is_zero


@pytest.mark.parametrize(("guidance", "substeps", "is_zero"), [(1.0, 1, True), (3.0, 1, False), (1.0, 4, False)])
def test_fresh_schnell_has_loss_only_from_guidance_and_long_steps(
    base: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch, guidance: float, substeps: int, is_zero: bool
) -> None:
    monkeypatch.setattr(students, "SUBSTEPS", substeps)
    config = STUDENT_CONFIGS["schnell"]
    interval = Rollout(torch.randn(8, 4, 64), config.single_interval(8, 4)).interval
    loss, _ = step_loss(schnell_from(base), base, config, interval, conditioning(8, guidance))
    assert (loss < 2e-5) == is_zero


def test_dev_guidance_samples_cover_range() -> None:
    torch.manual_seed(0)
    scales = STUDENT_CONFIGS["dev"].sample_guidance(4000)
    assert students.GUIDANCE_FROM <= scales.min() < 1.1
    assert 6.9 < scales.max() <= students.GUIDANCE_TO
    assert 2.9 < scales.median() < 3.4


@pytest.mark.parametrize("kind", ["dev", "schnell"])
def test_student_starts_with_imported_delta(base: FluxTransformer2DModel, tmp_path: Path, kind: str) -> None:
    earlier = dev_from(base) if kind == "dev" else schnell_from(base)
    for parameter in earlier.parameters():
        parameter.requires_grad_(False).add_(0.01 * torch.randn_like(parameter))
    delta_file(tmp_path, kind).parent.mkdir()
    torch.save(weight_delta(base, earlier), delta_file(tmp_path, kind))
    student = make_student(kind, base, tmp_path)
    for name, value in earlier.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value)
    other_base = nonzero_base()
    other_base.proj_out.weight += 1
    other_student = make_student(kind, other_base, tmp_path)
    torch.testing.assert_close(other_student.proj_out.weight, earlier.proj_out.weight + 1)
