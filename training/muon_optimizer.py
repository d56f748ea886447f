"""Muon for convolutions as well as matrices: PyTorch's implementation accepts only matrices."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from training import precision

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration in Keller Jordan's Muon (2024)."""


def orthogonalize(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Returns the nearest matrix with singular values of about 1, in `COMPUTE_DTYPE`."""
    a, b, c = _COEFFICIENTS
    near = matrix.to(precision.COMPUTE_DTYPE)
    wide = near.shape[0] <= near.shape[1]
    near = near if wide else near.T
    near = near / near.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = near @ near.T
        near = torch.addmm(near, torch.addmm(gram, gram, gram, beta=b, alpha=c), near, beta=a)
    return near if wide else near.T


class Muon(torch.optim.Optimizer):
    """Scales its steps to AdamW's length, so that both share one learning rate."""

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
                memory = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                matrix = weight.grad.lerp(memory, group["momentum"]).flatten(1)
                length = 0.2 * max(matrix.shape) ** 0.5
                weight.add_(orthogonalize(matrix).to(weight.dtype).view_as(weight), alpha=-group["lr"] * length)


class Optimizers:
    """Muon for the weights that `inner` selects, AdamW for all others, with one learning rate."""

    def __init__(self, model: torch.nn.Module, rate: float, inner: Callable[[str, torch.nn.Parameter], bool]) -> None:
        chosen = [parameter for name, parameter in model.named_parameters() if inner(name, parameter)]
        taken = {id(parameter) for parameter in chosen}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
        self.muon = Muon(chosen, lr=rate)
        self.adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, rate: float) -> None:
        """Takes one step at this learning rate and clears the gradients."""
        both: tuple[torch.optim.Optimizer, ...] = (self.muon, self.adamw)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
