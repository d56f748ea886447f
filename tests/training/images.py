"""A test image with a line of ink."""

import torch


def image_with_line(ink: tuple[float, float, float], side_px: int, background: float = 0.9) -> torch.Tensor:
    """Returns `[1, 3, side_px, side_px]`: a background with a vertical line of ink in the columns 6 to 9."""
    image = torch.full((1, 3, side_px, side_px), background)
    image[..., 6:10] = torch.tensor(ink)[None, :, None, None]
    return image
