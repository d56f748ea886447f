"""Group norms that can be told how often each pixel counts, so that a little blank paper stands for much.

An autoencoder's norms see the whole picture: what it says of a drawing depends on how much paper lies around. Where
some pixels count as often as that paper has pixels, it says the same without the paper. Knows nothing of drawings.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class WideNorm(torch.nn.GroupNorm):
    """The same norm in float32: its gradient in bfloat16 over many pixels takes three times as long on a CPU."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        with torch.autocast(given.device.type, enabled=False):
            return self.normed(given.float()).to(given.dtype)

    def normed(self, given: torch.Tensor) -> torch.Tensor:
        """In float32."""
        return super().forward(given)


class CountedNorm(WideNorm):
    """The same; statistics of pixels that count differently, if `counts` (height, width) says so."""

    counts: torch.Tensor | None = None

    def normed(self, given: torch.Tensor) -> torch.Tensor:
        return super().normed(given) if self.counts is None else self._counted(given, self.counts)

    def _counted(self, given: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        share = torch.nn.functional.adaptive_avg_pool2d(counts[None], (given.shape[2], given.shape[3]))
        share = share / share.sum()
        mean, square = (self._of_groups((values * share).sum(dim=(2, 3))) for values in (given, given.square()))
        gain = (square - mean.square() + self.eps).rsqrt() * self.weight
        turned: torch.Tensor = given * gain[..., None, None] + (self.bias - mean * gain)[..., None, None]
        return turned

    def _of_groups(self, of_channels: torch.Tensor) -> torch.Tensor:
        """(batch, channels), each the mean of its group."""
        groups = of_channels.view(-1, self.num_groups, self.num_channels // self.num_groups)
        return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)


def make_countable(model: torch.nn.Module) -> None:
    """Gives every group norm of the model the means to count; until told otherwise they count every pixel once."""
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.__class__ = CountedNorm


@contextmanager
def counting(model: torch.nn.Module, counts: torch.Tensor | None) -> Iterator[None]:
    """Within the block, the norms count each pixel of a picture as often as `counts` (height, width) says."""
    norms = [module for module in model.modules() if isinstance(module, CountedNorm)]
    for norm in norms:
        norm.counts = counts
    try:
        yield
    finally:
        for norm in norms:
            norm.counts = None
