"""Builds the low-rank matrices or the Kronecker factors of a layer from LoRA, LoHa and LoKr tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from serve.lora.model_geometry import Shape
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
    "bias": ("lora_B.bias", "lora_up.bias", "lora.up.bias", "lora_linear_layer.up.bias", "up.bias"),
    "diff_b": ("diff_b",),
    "diff": ("diff",),
    **{role: (role,) for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    **{role: (role,) for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
}
"""Role of a tensor to the suffixes that trainers use for it."""
SUFFIXES = {suffix: role for role, suffixes in ROLES.items() for suffix in suffixes}
VECTOR_ROLES = frozenset(("alpha", "bias", "diff_b"))
"""Roles of tensors that are not matrices: alpha, the bias of the LoRA, and a change of the layer's bias."""

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

    @property
    def shape(self) -> Shape:
        return self.up.shape[0], self.down.shape[1]


@dataclass(frozen=True, slots=True)
class KroneckerFactor:
    """A matrix `a @ b`, or `a` alone."""

    a: torch.Tensor
    b: torch.Tensor | None

    @property
    def shape(self) -> Shape:
        return self.a.shape[0], (self.a if self.b is None else self.b).shape[1]

    @property
    def rank(self) -> int:
        return min(self.a.shape)

    def full(self) -> torch.Tensor:
        return self.a if self.b is None else _in_float32(torch.mm, self.a, self.b)

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two matrices whose product is the factor. A full matrix is paired with an identity matrix."""
        if self.b is not None:
            return self.a, self.b
        identity = torch.eye(self.rank, dtype=self.a.dtype)
        return (self.a, identity) if self.a.shape[1] <= self.a.shape[0] else (identity, self.a)


@dataclass(frozen=True, slots=True)
class KroneckerProduct:
    """LyCORIS' LoKr: `kron(outer, inner)` is added to the weight of the layer, scaled by `alpha / alpha_rank`."""

    outer: KroneckerFactor
    inner: KroneckerFactor
    alpha_rank: int | None
    """The trained rank; None if both factors are full matrices, for which LyCORIS ignores alpha."""

    @property
    def shape(self) -> Shape:
        (outer_out, outer_in), (inner_out, inner_in) = self.outer.shape, self.inner.shape
        return outer_out * inner_out, outer_in * inner_in

    @property
    def rank(self) -> int:
        return self.outer.rank * self.inner.rank

    def to_low_rank(self) -> LowRankProduct:
        """Uses `kron(a @ b, c @ d) = kron(a, c) @ kron(b, d)`."""
        (outer_a, outer_b), (inner_a, inner_b) = self.outer.pair(), self.inner.pair()
        down, up = _in_float32(torch.kron, outer_b, inner_b), _in_float32(torch.kron, outer_a, inner_a)
        return LowRankProduct(down, up, self.alpha_rank)


def combine(tensors: Tensors, max_rank: int) -> LowRankProduct | KroneckerProduct:
    """Combines the matrices of one layer. Raises `InvalidLoraFile`.

    `max_rank` limits the rank of LoHa products and of whole changes of a weight, before they are computed. The rank of
    other products is not checked here.
    """
    roles = tensors.keys() - VECTOR_ROLES
    if roles == _LORA_ROLES:
        return _lora(tensors)
    if roles == _LOHA_ROLES:
        return _loha(tensors, max_rank)
    if roles == {"diff"}:
        return _diff(tensors["diff"], max_rank)
    if roles and all(role.startswith("lokr_") for role in roles):
        return _lokr(tensors)
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
    rank = w1_a.shape[1] * w2_a.shape[1]
    if rank > max_rank:
        raise InvalidLoraFile(f"the product of its LoHa matrices has rank {rank}; at most {max_rank} is accepted")
    up = _in_float32(lambda a, b: (a[:, :, None] * b[:, None, :]).flatten(1), w1_a, w2_a)
    down = _in_float32(lambda a, b: (a[:, None, :] * b[None, :, :]).flatten(0, 1), w1_b, w2_b)
    return LowRankProduct(down, up, w1_b.shape[0])


def _diff(tensor: torch.Tensor, max_rank: int) -> LowRankProduct:
    """The change of a whole weight, which is applied if one of its sides is short enough to count as a rank."""
    factor = KroneckerFactor(_matrix(tensor), None)
    if factor.rank > max_rank:
        raise InvalidLoraFile(
            f"it changes a whole weight, which has rank {factor.rank}; at most {max_rank} is accepted; "
            "extract a LoRA of a lower rank from it"
        )
    up, down = factor.pair()
    return LowRankProduct(down, up, None)


def _lokr(tensors: Tensors) -> KroneckerProduct:
    outer, inner = _lokr_factor(tensors, "lokr_w1"), _lokr_factor(tensors, "lokr_w2")
    alpha_rank = next((tensors[role].shape[0] for role in ("lokr_w2_b", "lokr_w1_b") if role in tensors), None)
    return KroneckerProduct(outer, inner, alpha_rank)


def _lokr_factor(tensors: Tensors, name: str) -> KroneckerFactor:
    if name in tensors:
        return KroneckerFactor(_matrix(tensors[name]), None)
    try:
        a, b = _matrix(tensors[f"{name}_a"]), _matrix(tensors[f"{name}_b"])
    except KeyError as error:
        raise InvalidLoraFile("its set of LoKr matrices is incomplete") from error
    if a.shape[1] != b.shape[0]:
        raise InvalidLoraFile("its LoKr matrices do not match")
    return KroneckerFactor(a, b)


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
