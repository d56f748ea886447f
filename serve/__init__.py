"""flux-serve: FLUX image generation on Ray Serve, with the API of Replicate's FLUX LoRA models."""

__version__ = "0.1.0"
