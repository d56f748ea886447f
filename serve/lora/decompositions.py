"""Builds the two low-rank matrices of a layer from LoRA, LoHa and LoKr tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from serve.lora.safetensors_header import InvalidLoraFile

Tensors = Mapping[str, torch.Tensor]
"""The tensors of one layer by role, one of `ROLES`."""

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
"""Role of a tensor to the suffixes that trainers use for it."""
SUFFIXES = {suffix: role for role, suffixes in ROLES.items() for suffix in suffixes}

_UNSUPPORTED = {
    "dora": "DoRA, which rescales the weights of the model",
    "hada_t1": "LoHa for convolutions",
    "hada_t2": "LoHa for convolutions",
    "lokr_t2": "LoKr for convolutions",
    "mid": "LoCon for convolutions",
    "oft": "OFT, which rotates the weights of the model",
    **{f"glora_{name}": "GLoRA, which rescales the weights of the model" for name in ("a1", "a2", "b1", "b2")},
}
"""Roles of methods that are not a sum of the weight and a low-rank product."""
_LORA_ROLES = frozenset(("down", "up"))
_LOHA_ROLES = frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))


@dataclass(frozen=True, slots=True)
class LowRankProduct:
    """`up @ down` is added to the weight of the layer, scaled by `alpha / alpha_rank`."""

    down: torch.Tensor
    """`[rank, in]`."""
    up: torch.Tensor
    """`[out, rank]`."""
    alpha_rank: int | None
    """The trained rank, which LoHa and LoKr products exceed; None if alpha does not apply."""


def to_low_rank(tensors: Tensors, max_rank: int) -> LowRankProduct:
    """Combines the tensors of one layer. Raises `InvalidLoraFile`.

    `max_rank` limits the rank of LoHa and LoKr products, before they are computed. The rank of LoRA matrices is not
    checked here.
    """
    for role, method in _UNSUPPORTED.items():
        if role in tensors:
            raise InvalidLoraFile(f"it uses {method}; only LoRA, LoHa and LoKr are supported")
    roles = tensors.keys() - {"alpha"}
    if roles == _LORA_ROLES:
        return _lora(tensors)
    if roles == _LOHA_ROLES:
        return _loha(tensors, max_rank)
    if roles and all(role.startswith("lokr_") for role in roles):
        return _lokr(tensors, max_rank)
    raise InvalidLoraFile(f"its set of matrices is incomplete, it has only {', '.join(sorted(roles)) or 'alpha'}")


def _lora(tensors: Tensors) -> LowRankProduct:
    down, up = _matrix(tensors["down"]), _matrix(tensors["up"])
    if up.shape[1] != down.shape[0]:
        raise InvalidLoraFile(f"its LoRA matrices do not match: they have the ranks {down.shape[0]} and {up.shape[1]}")
    return LowRankProduct(down, up, down.shape[0])


def _loha(tensors: Tensors, max_rank: int) -> LowRankProduct:
    """LyCORIS' LoHa: `(w1_a @ w1_b) * (w2_a @ w2_b)`, element by element.

    It equals `up @ down`, where the columns of `up` are the products of all pairs of columns of `w1_a` and `w2_a`, and
    the rows of `down` those of all pairs of rows of `w1_b` and `w2_b`. The rank is the product of both ranks.
    """
    w1_a, w1_b, w2_a, w2_b = (_matrix(tensors[role]) for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
    is_consistent = (
        w1_a.shape[1] == w1_b.shape[0]
        and w2_a.shape[1] == w2_b.shape[0]
        and w1_a.shape[0] == w2_a.shape[0]
        and w1_b.shape[1] == w2_b.shape[1]
    )
    if not is_consistent:
        raise InvalidLoraFile("its LoHa matrices do not match")
    _check_rank("LoHa", w1_a.shape[1] * w2_a.shape[1], max_rank)
    up = _in_float32(lambda a, b: (a[:, :, None] * b[:, None, :]).flatten(1), w1_a, w2_a)
    down = _in_float32(lambda a, b: (a[:, None, :] * b[None, :, :]).flatten(0, 1), w1_b, w2_b)
    return LowRankProduct(down, up, w1_b.shape[0])


def _lokr(tensors: Tensors, max_rank: int) -> LowRankProduct:
    """LyCORIS' LoKr: `kron(w1, w2)`, where each factor may be given as a product, such as `w1_a @ w1_b`.

    Uses `kron(a @ b, c @ d) = kron(a, c) @ kron(b, d)`.
    """
    (w1_a, w1_b), (w2_a, w2_b) = _lokr_factor(tensors, "lokr_w1"), _lokr_factor(tensors, "lokr_w2")
    _check_rank("LoKr", w1_a.shape[1] * w2_a.shape[1], max_rank)
    alpha_rank = next((tensors[role].shape[0] for role in ("lokr_w2_b", "lokr_w1_b") if role in tensors), None)
    return LowRankProduct(_in_float32(torch.kron, w1_b, w2_b), _in_float32(torch.kron, w1_a, w2_a), alpha_rank)


def _lokr_factor(tensors: Tensors, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices whose product is the factor `name`. A full matrix is paired with an identity matrix."""
    if name in tensors:
        full = _matrix(tensors[name])
        identity = torch.eye(min(full.shape), dtype=full.dtype)
        return (full, identity) if full.shape[1] <= full.shape[0] else (identity, full)
    try:
        a, b = _matrix(tensors[f"{name}_a"]), _matrix(tensors[f"{name}_b"])
    except KeyError as error:
        raise InvalidLoraFile("its set of LoKr matrices is incomplete") from error
    if a.shape[1] != b.shape[0]:
        raise InvalidLoraFile("its LoKr matrices do not match")
    return a, b


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as a contiguous matrix. The kernel of a 1x1 convolution counts as one."""
    if not tensor.is_floating_point():
        raise InvalidLoraFile("it has an integer tensor in place of a matrix; quantized LoRAs are not supported")
    if tensor.ndim < 2 or math.prod(tensor.shape[2:]) != 1 or 0 in tensor.shape:
        raise InvalidLoraFile(f"it has a tensor of shape {list(tensor.shape)} in place of a matrix")
    return tensor.reshape(tensor.shape[:2]).contiguous()


def _in_float32(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Computes the product in float32 and returns it in the dtype of `a`."""
    return product(a.float(), b.float()).to(a.dtype)


def _check_rank(method: str, rank: int, max_rank: int) -> None:
    if rank > max_rank:
        raise InvalidLoraFile(f"the product of its {method} matrices has rank {rank}; at most {max_rank} is accepted")
