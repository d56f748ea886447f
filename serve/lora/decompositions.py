"""Builds the two low-rank matrices of a layer from LoRA, LoHa and LoKr tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from serve.lora.safetensors_header import InvalidLoraFile

Tensors = Mapping[str, torch.Tensor]
"""By role, as in `ROLES`."""

ROLES = {
    "down": (
        "lora_A.weight",
        "lora_down.weight",
        "lora.down.weight",
        "lora_linear_layer.down.weight",
        "down.weight",
    ),
    "up": (
        "lora_B.weight",
        "lora_up.weight",
        "lora.up.weight",
        "lora_linear_layer.up.weight",
        "up.weight",
    ),
    "alpha": ("alpha",),
    "dora": ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
    **{role: (role,) for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{role: (role,) for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    "mid": ("lora_mid.weight",),
    "oft": ("oft_blocks", "oft_diag", "oft_R.weight"),
    **{f"glora_{name}": (f"{name}.weight",) for name in ("a1", "a2", "b1", "b2")},
}
"""What a tensor is for, and how trainers end its name."""
SUFFIXES = {suffix: role for role, suffixes in ROLES.items() for suffix in suffixes}

_NOT_LOW_RANK = {
    "dora": "DoRA, which also scales the weights of the model",
    "hada_t1": "LoHa for convolutions",
    "hada_t2": "LoHa for convolutions",
    "lokr_t2": "LoKr for convolutions",
    "mid": "LoCon for convolutions",
    "oft": "OFT, which rotates the weights of the model",
    **{f"glora_{name}": "GLoRA, which also scales the weights of the model" for name in ("a1", "a2", "b1", "b2")},
}
_LOHA = frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
_PLAIN = frozenset(("down", "up"))


@dataclass(frozen=True, slots=True)
class LowRankProduct:
    """`up @ down` is what is added to the weight, before `alpha / rank_trained`."""

    down: torch.Tensor
    up: torch.Tensor
    rank_trained: int | None
    """The rank that alpha is divided by; None where this kind of product knows no alpha."""


def to_low_rank(tensors: Tensors, max_rank: int) -> LowRankProduct:
    """The matrices that `tensors`, all of one layer, multiply out into. Raises `InvalidLoraFile`.

    `max_rank` bounds what is multiplied out; plain matrices are left for the caller to check.
    """
    for role, why in _NOT_LOW_RANK.items():
        if role in tensors:
            raise InvalidLoraFile(f"it is made with {why}; only LoRA, LoHa and LoKr are applied here")
    roles = tensors.keys() - {"alpha"}
    if roles == _PLAIN:
        return _plain(tensors)
    if roles == _LOHA:
        return _loha(tensors, max_rank)
    if roles and all(role.startswith("lokr_") for role in roles):
        return _lokr(tensors, max_rank)
    raise InvalidLoraFile(f"of the matrices that belong together it has only {', '.join(sorted(roles)) or 'alpha'}")


def _plain(tensors: Tensors) -> LowRankProduct:
    down, up = _matrix(tensors["down"]), _matrix(tensors["up"])
    if up.shape[1] != down.shape[0]:
        raise InvalidLoraFile(f"its two matrices do not belong together: ranks {down.shape[0]} and {up.shape[1]}")
    return LowRankProduct(down, up, down.shape[0])


def _loha(tensors: Tensors, max_rank: int) -> LowRankProduct:
    """(a1 @ b1) * (a2 @ b2), element by element, is the product of all pairs of columns with all pairs of rows."""
    a1, b1, a2, b2 = (_matrix(tensors[role]) for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
    if a1.shape[1] != b1.shape[0] or a2.shape[1] != b2.shape[0]:
        raise InvalidLoraFile("its LoHa matrices do not belong together")
    if a1.shape[0] != a2.shape[0] or b1.shape[1] != b2.shape[1]:
        raise InvalidLoraFile("its LoHa matrices do not belong together")
    _check_rank("LoHa", a1.shape[1] * a2.shape[1], max_rank)
    up = _in_float32(lambda x, y: (x[:, :, None] * y[:, None, :]).flatten(1), a1, a2)
    down = _in_float32(lambda x, y: (x[:, None, :] * y[None, :, :]).flatten(0, 1), b1, b2)
    return LowRankProduct(down, up, b1.shape[0])


def _lokr(tensors: Tensors, max_rank: int) -> LowRankProduct:
    """The Kronecker product of two matrices, each of which may be a product itself.

    kron(a @ b, c @ d) = kron(a, c) @ kron(b, d); a matrix that is no product takes a unit matrix on its shorter side.
    """
    (a, b), (c, d) = _pair(tensors, "lokr_w1"), _pair(tensors, "lokr_w2")
    _check_rank("LoKr", a.shape[1] * c.shape[1], max_rank)
    trained = next((tensors[role].shape[0] for role in ("lokr_w2_b", "lokr_w1_b") if role in tensors), None)
    return LowRankProduct(_in_float32(torch.kron, b, d), _in_float32(torch.kron, a, c), trained)


def _pair(tensors: Tensors, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices of which `name` is the product."""
    if name in tensors:
        whole = _matrix(tensors[name])
        unit = torch.eye(min(whole.shape), dtype=whole.dtype)
        return (whole, unit) if whole.shape[1] <= whole.shape[0] else (unit, whole)
    try:
        left, right = _matrix(tensors[f"{name}_a"]), _matrix(tensors[f"{name}_b"])
    except KeyError as error:
        raise InvalidLoraFile("its LoKr matrices are not complete") from error
    if left.shape[1] != right.shape[0]:
        raise InvalidLoraFile("its LoKr matrices do not belong together")
    return left, right


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as a matrix; kernels of 1x1 convolutions are matrices too."""
    if not tensor.is_floating_point():
        raise InvalidLoraFile("it has whole numbers where a matrix should be; quantised LoRAs are not taken")
    if tensor.ndim < 2 or math.prod(tensor.shape[2:]) != 1 or 0 in tensor.shape:
        raise InvalidLoraFile(f"it has a tensor of shape {list(tensor.shape)} where a matrix should be")
    return tensor.reshape(tensor.shape[:2]).contiguous()


def _in_float32(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], one: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    """The product computed in float32, then of the dtype of `one` again."""
    return product(one.float(), other.float()).to(one.dtype)


def _check_rank(kind: str, rank: int, max_rank: int) -> None:
    if rank > max_rank:
        raise InvalidLoraFile(f"its {kind} matrices multiply out to rank {rank}, at most {max_rank} is taken")
