"""Constants and types of the GPU tests."""

from collections.abc import Callable

from serve.engine.checkpoint import Checkpoint
from serve.settings import Device

DEVICE: Device = "cuda"
SIZE = (256, 192)
"""Width and height of the images."""
LoadOnGpu = Callable[..., Checkpoint]
"""The type of the fixture `load_on_gpu`."""
