"""Group norms with a weight per pixel, so that a narrow margin can stand for a large background.

The group norms of an autoencoder average over the full image, so latents depend on the amount of background.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Float32GroupNorm(torch.nn.GroupNorm):
    """Computes in float32, because the bfloat16 backward pass over many pixels takes three times as long on a CPU."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self._normalize(features.float()).to(features.dtype)

    def _normalize(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features)


class WeightedGroupNorm(Float32GroupNorm):
    """Weights its statistics by `pixel_weights`, `[height, width]`, if they are set."""

    pixel_weights: torch.Tensor | None = None

    def _normalize(self, features: torch.Tensor) -> torch.Tensor:
        if self.pixel_weights is None:
            return super()._normalize(features)
        return self._normalize_weighted(features, self.pixel_weights)

    def _normalize_weighted(self, features: torch.Tensor, pixel_weights: torch.Tensor) -> torch.Tensor:
        share = torch.nn.functional.adaptive_avg_pool2d(pixel_weights[None], (features.shape[2], features.shape[3]))
        share = share / share.sum()
        mean, square = (self._group_means((values * share).sum(dim=(2, 3))) for values in (features, features.square()))
        gain = (square - mean.square() + self.eps).rsqrt() * self.weight
        normalised: torch.Tensor = features * gain[..., None, None] + (self.bias - mean * gain)[..., None, None]
        return normalised

    def _group_means(self, channel_values: torch.Tensor) -> torch.Tensor:
        """Replaces each channel's value in `[batch, channels]` by the mean of its group."""
        groups = channel_values.view(-1, self.num_groups, self.num_channels // self.num_groups)
        return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)


def use_weighted_norms(model: torch.nn.Module) -> None:
    """Replaces the model's group norms by `WeightedGroupNorm`, which behaves as before until weights are set."""
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.__class__ = WeightedGroupNorm


@contextmanager
def weighted_statistics(model: torch.nn.Module, pixel_weights: torch.Tensor | None) -> Iterator[None]:
    """Within the block, the norms weight each pixel by `pixel_weights`, `[height, width]`."""
    norms = [module for module in model.modules() if isinstance(module, WeightedGroupNorm)]
    for norm in norms:
        norm.pixel_weights = pixel_weights
    try:
        yield
    finally:
        for norm in norms:
            norm.pixel_weights = None
