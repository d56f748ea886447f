"""The Muon optimizer for matrices and convolutions. PyTorch's implementation accepts only matrices."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from training import precision

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration in Keller Jordan's Muon (2024)."""


def orthogonalize(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Returns the nearest matrix whose singular values are all about 1, in `COMPUTE_DTYPE`."""
    a, b, c = _COEFFICIENTS
    result = matrix.to(precision.COMPUTE_DTYPE)
    wide = result.shape[0] <= result.shape[1]
    result = result if wide else result.T
    result = result / result.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result if wide else result.T


class Muon(torch.optim.Optimizer):
    """Muon with steps of about AdamW's size, so that both optimizers share one learning rate."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                matrix = weight.grad.lerp(momentum, group["momentum"]).flatten(1)
                scale = 0.2 * max(matrix.shape) ** 0.5
                weight.add_(orthogonalize(matrix).to(weight.dtype).view_as(weight), alpha=-group["lr"] * scale)


class Optimizers:
    """Muon for the weights that `uses_muon` selects, AdamW for all others, with one learning rate."""

    def __init__(
        self, model: torch.nn.Module, rate: float, uses_muon: Callable[[str, torch.nn.Parameter], bool]
    ) -> None:
        muon_weights = [parameter for name, parameter in model.named_parameters() if uses_muon(name, parameter)]
        muon_ids = {id(parameter) for parameter in muon_weights}
        adamw_weights = [parameter for parameter in model.parameters() if id(parameter) not in muon_ids]
        self.muon = Muon(muon_weights, lr=rate)
        self.adamw = torch.optim.AdamW(adamw_weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, rate: float) -> None:
        """Makes one step with this learning rate and clears the gradients."""
        optimizers: tuple[torch.optim.Optimizer, ...] = (self.muon, self.adamw)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
