"""LoRAs: reference parsing, downloads, validation, format conversion and the two-tier cache.

Independent of Ray, HTTP routes and the engine. Only the modules that handle tensors import torch.
"""
