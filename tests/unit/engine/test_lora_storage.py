"""LoRA slots in memory: groups, and LoRAs that are converted before they are copied."""

import pytest
import torch
from torch import nn

from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_storage import GatheredSlots, layer_columns, split_into_groups
from serve.lora.weights import LowRank
from tests.unit.engine.loras import write_to_slots

WIDTH = 4


def _slots(dtype: torch.dtype = torch.float32) -> LoraSlots:
    block = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(WIDTH, WIDTH), "mlp": nn.Linear(WIDTH, 8)}) for _ in range(2)])
    network = nn.ModuleDict({"blocks": block, "embedder": nn.Linear(WIDTH, WIDTH)}).to(dtype)
    # Another dtype, as networks of a checkpoint may have.
    return LoraSlots({"net": network, "clip": nn.Linear(WIDTH, WIDTH, dtype=torch.float16)}, 2**20, 9)


def _matrix(outputs: int, rank: int = 2, value: float = 1.0, bias: bool = False) -> LowRank:
    down, up = torch.full((rank, WIDTH), value), torch.full((outputs, rank), 2 * value)
    return LowRank(down, up, 0.5, torch.full((outputs,), 3 * value) if bias else None)


MATRICES = {
    "net.blocks.1.mlp": _matrix(8, 3, 5.0),
    "net.embedder": _matrix(WIDTH, 1, 7.0, bias=True),
    "clip.": _matrix(WIDTH, 2, 9.0),
}


def test_layers_of_a_block_share_a_group_and_other_layers_have_their_own() -> None:
    names = ["net.blocks.0.q", "net.blocks.0.mlp.2", "net.blocks.1.q", "net.blocks.10.q", "net.out", "clip.blocks.0.q"]
    groups = split_into_groups({name: nn.Linear(WIDTH, WIDTH) for name in names}, 3)
    members = {frozenset(group.columns) for group in groups.values()}
    assert members == {frozenset(names[:2]), *(frozenset({name}) for name in names[2:])}
    assert groups[names[0]].rows.shape == (3, 4 * WIDTH)


def test_columns_are_down_and_up_of_each_layer() -> None:
    first, second = layer_columns([nn.Linear(3, 5), nn.Linear(5, 2)])
    assert (first.number, first.down, first.up) == (0, slice(0, 3), slice(3, 8))
    assert (second.number, second.down, second.up) == (1, slice(8, 13), slice(13, 15))


def test_loaded_lora_is_in_its_slots_and_nowhere_else() -> None:
    slots = _slots()
    for group in set(slots.groups.values()):
        group.rows[1:].fill_(-1)
        group.constants[1:].fill_(-1)
    slots.load([5, 2, 7], slots.stage(3, MATRICES))
    for name, group in slots.groups.items():
        number, down, up = group.columns[name]
        matrix = MATRICES.get(name, LowRank(torch.zeros(0, WIDTH), torch.zeros(up.stop - up.start, 0)))
        rows = torch.zeros(3, group.rows.shape[1])
        rows[: matrix.rank, down], rows[: matrix.rank, up] = matrix.down, 0.5 * matrix.up.t()
        constants = torch.zeros(3)
        if matrix.bias is not None:
            rows[matrix.rank, up], constants[matrix.rank] = matrix.bias, 1
        written = torch.tensor([5, 2, 7])
        for columns in (down, up):
            assert torch.equal(group.rows[written, columns].float(), rows[:, columns])
        assert torch.equal(group.constants[written, number].float(), constants)
        assert (group.rows[[1, 3, 4, 6, 8, 9]] == -1).all()
        assert (group.rows[0] == 0).all()


def test_staged_lora_may_use_memory_with_other_content() -> None:
    expected, reused = _slots(torch.bfloat16), _slots(torch.bfloat16)
    expected.load([3, 1, 2], expected.stage(3, MATRICES))
    reused.load([3, 1, 2], reused.stage(3, MATRICES, lambda size: torch.full((2 * size,), 77, dtype=torch.uint8)))
    for name, group in reused.groups.items():
        assert torch.equal(group.rows, expected.groups[name].rows)
        assert torch.equal(group.constants, expected.groups[name].constants)


def test_gathered_slots_are_those_that_are_selected() -> None:
    """More slots than there is memory for are selected at once."""
    slots = _slots()
    slots.load([5, 2, 7], slots.stage(3, MATRICES))
    groups = set(slots.groups.values())
    gathered = GatheredSlots(groups, 4)
    for numbers in ([7, 0, 5], [2, 5, 7, 0, 0, 7]):
        selected = torch.tensor(numbers)
        gathered.gather(selected, slots.version)
        for group in groups:
            rows, constants = gathered.select(group, selected)
            assert torch.equal(rows, group.rows[selected])
            assert torch.equal(constants, group.constants[selected])


def test_slots_are_gathered_once_at_the_same_address_until_one_is_written() -> None:
    slots = _slots()
    slots.load([1, 2, 3], slots.stage(3, MATRICES))
    group, selected = slots.groups["net.embedder"], torch.tensor([1, 2])
    gathered = GatheredSlots([group], 4)
    gathered.gather(selected, slots.version)
    rows, _ = gathered.select(group, selected)
    before = rows.clone()
    group.rows.zero_()
    gathered.gather(selected, slots.version)
    assert torch.equal(rows, before)
    slots.load([1, 2, 3], slots.stage(3, {}))
    gathered.gather(selected, slots.version)
    assert not rows.any()
    assert gathered.select(group, selected)[0].data_ptr() == rows.data_ptr()


def test_staging_writes_to_no_slot() -> None:
    slots = _slots()
    slots.stage(3, MATRICES)
    assert all((group.rows == 0).all() for group in slots.groups.values())


def test_numbers_beyond_the_dtype_stay_finite() -> None:
    slots = _slots()
    write_to_slots(slots, [1, 2], {"clip.": _matrix(WIDTH, 2, 1e30)})
    assert slots.groups["clip."].rows.isfinite().all()
    assert slots.groups["clip."].rows.max() == torch.finfo(torch.float16).max


@pytest.mark.parametrize("name", ["net.unknown", "net.blocks.0.q", "net.embedder"])
def test_invalid_matrices_are_not_staged(name: str) -> None:
    with pytest.raises(ValueError, match=r"net\."):
        _slots().stage(1, {name: _matrix(8)})
