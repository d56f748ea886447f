"""Creates model folders for both stages of the `flux` safety checker: the same classes, tiny, with random weights."""

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, ViTConfig, ViTForImageClassification
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE = 32
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FLAGS_ALL, FLAGS_NONE = -2.0, 2.0
"""Thresholds below and above every cosine similarity."""


def make_concepts(folder: Path, threshold: float) -> Path:
    """Saves a first stage with the same threshold for all concepts, and returns `folder`.

    The weights have the names of the published checkpoint.
    """
    torch.manual_seed(0)
    vision = TINY | {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(vision_config=vision, text_config=TINY, projection_dim=16)
    network = StableDiffusionSafetyChecker(config)
    torch.nn.init.normal_(network.concept_embeds)
    torch.nn.init.constant_(network.concept_embeds_weights, threshold)
    torch.nn.init.constant_(network.special_care_embeds_weights, FLAGS_NONE)
    network.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): tensor for name, tensor in weights.items()
    }
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder


def make_classifier(
    folder: Path, normal: float, labels: tuple[str, str] = ("normal", "nsfw"), side: int = SIDE
) -> Path:
    """Saves a second stage, and returns `folder`. `normal` is added to the score of its first label."""
    torch.manual_seed(1)
    network = ViTForImageClassification(
        ViTConfig(**TINY, image_size=SIDE, patch_size=8, id2label=dict(enumerate(labels)))
    )
    network.classifier.bias.data.copy_(torch.tensor([normal, 0.0]))
    network.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder
