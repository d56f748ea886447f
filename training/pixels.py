"""Pictures as tensors and back. Knows nothing else."""

import numpy as np
import torch
from PIL import Image


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """(3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def to_picture(tensor: torch.Tensor) -> Image.Image:
    """The reverse; what is beyond [-1, 1] is cut."""
    array = ((tensor.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
