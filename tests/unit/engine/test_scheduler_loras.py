"""When jobs with LoRAs begin: what they wait for, what they keep from whom, and what happens to those that cannot."""

import gc
import weakref
from collections.abc import Mapping

import pytest

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import Canceled, Completed, Failed, GenerationRequest
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.errors import EngineFailed, LorasMissing, LorasTooLarge
from serve.events import Started
from serve.lora.weights import LoraWeights
from serve.settings import PoolSettings
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.loras import lora_requests, make_lora, resident_keys
from tests.unit.engine.requests import RequestRecorder, make_request

RANK = 16


@pytest.fixture(scope="module")
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    """With room for two LoRAs."""
    checkpoint = checkpoints.load("dev", "bf16", lora_bytes=2**20)
    assert 2 * RANK <= checkpoint.lora_slots.count < 3 * RANK
    return checkpoint


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint) -> Mapping[str, LoraWeights]:
    return {key: make_lora(checkpoint, seed, rank=RANK, layers="attn") for seed, key in enumerate("abcdef")}


class Table:
    """A loop, and jobs that come to it."""

    def __init__(self, checkpoint: Checkpoint, loras: Mapping[str, LoraWeights]) -> None:
        self.loop = Scheduler(checkpoint, PoolSettings(model=""), Watchdog())
        self._loras = loras
        self._comers = 0

    def seat(self, keys: str, steps: int = 2) -> RequestRecorder:
        return self.admit(
            make_request(steps=steps, loras=lora_requests(**dict.fromkeys(keys, 1.0)), weights=self._loras)
        )

    def admit(self, job: GenerationRequest) -> RequestRecorder:
        sitting = RequestRecorder(self._comers, job)
        self._comers += 1
        self.loop.add([sitting.state], ())
        return sitting

    def rounds(self, number: int) -> None:
        for _ in range(number):
            self.loop.step()

    def to_the_end(self) -> None:
        while self.loop.has_work:
            self.loop.step()


@pytest.fixture
def table(checkpoint: Checkpoint, loras: Mapping[str, LoraWeights]) -> Table:
    return Table(checkpoint, loras)


def _begun(*sittings: RequestRecorder) -> list[bool]:
    return [any(isinstance(event, Started) for event in sitting.events) for sitting in sittings]


def test_between_two_steps_the_loras_of_one_job_are_copied_at_most(table: Table) -> None:
    sittings = [table.seat("a"), table.seat("b"), table.seat("a"), table.seat("")]
    for copies, begun in ((1, [True, False, False, True]), (2, [True, True, False, True]), (2, [True] * 4)):
        table.rounds(1)
        assert table.loop.loras.loads == copies
        assert _begun(*sittings) == begun
    table.loop.fail_all(EngineFailed())


def test_those_whose_loras_lie_on_the_device_begin_together(table: Table) -> None:
    table.seat("a")
    table.to_the_end()
    sittings = [table.seat("a") for _ in range(4)]
    table.rounds(1)
    assert _begun(*sittings) == [True] * 4
    table.loop.fail_all(EngineFailed())


def test_who_finds_no_room_waits_for_it_and_those_without_loras_pass_by(table: Table) -> None:
    sitting = [table.seat("a", steps=4), table.seat("b", steps=9)]
    table.rounds(2)
    waiting, plain = table.seat("c"), table.seat("")
    table.rounds(2)
    assert _begun(waiting, plain) == [False, True]
    assert resident_keys(table.loop.loras, "abcd") == {"a", "b"}
    table.rounds(2)
    assert isinstance(sitting[0].final_event, Completed)
    assert _begun(waiting) == [True]
    assert resident_keys(table.loop.loras, "abcd") == {"b", "c"}
    table.to_the_end()


def test_a_stream_of_requests_for_one_lora_does_not_starve_another(table: Table) -> None:
    """The room is full of what the stream draws with, and each newcomer would keep it so."""
    for _ in range(3):
        table.seat("ab", steps=3)
        table.rounds(1)
    other = table.seat("cd")
    newcomers = []
    for _ in range(12):
        newcomers.append(table.seat("ab", steps=3))
        table.rounds(1)
    assert isinstance(other.final_event, Completed)
    table.to_the_end()
    assert all(isinstance(sitting.final_event, Completed) for sitting in newcomers)


def test_two_that_each_hold_what_the_other_needs_both_end(table: Table) -> None:
    for keys in ("ab", "cd", "ac", "bd", "ad"):
        table.seat(keys, steps=1)
    first, second = table.seat("ab"), table.seat("bc")
    table.to_the_end()
    assert isinstance(first.final_event, Completed)
    assert isinstance(second.final_event, Completed)


@pytest.mark.parametrize("leaving", ["waits", "steps"])
def test_who_leaves_makes_room(table: Table, leaving: str) -> None:
    stepping, waiting, next_one = table.seat("ab", steps=50), table.seat("cd", steps=50), table.seat("ef")
    table.rounds(2)
    assert _begun(stepping, waiting, next_one) == [True, False, False]
    left = {"waits": [waiting, stepping], "steps": [stepping, waiting]}[leaving]
    for sitting in left:
        sitting.state.cancel_token.cancelled = True
        table.rounds(1)
        assert isinstance(sitting.final_event, Canceled)
    table.to_the_end()
    assert isinstance(next_one.final_event, Completed)


def test_when_all_fail_their_room_is_free_again(table: Table) -> None:
    table.seat("ab", steps=9)
    table.rounds(2)
    table.loop.fail_all(EngineFailed())
    after = table.seat("cd")
    table.to_the_end()
    assert isinstance(after.final_event, Completed)


def test_a_job_that_carries_too_little_or_too_much_fails_alone(
    table: Table, checkpoint: Checkpoint, loras: Mapping[str, LoraWeights]
) -> None:
    table.seat("a")
    table.to_the_end()
    bare = table.admit(make_request(loras=lora_requests(a=1.0, b=0.0)))
    lacking = table.admit(make_request(loras=lora_requests(a=1.0, b=1.0)))
    wide = make_lora(checkpoint, 1, rank=60, layers="x_embedder")
    larger = table.admit(make_request(loras=lora_requests(a=1.0, wide=1.0), weights={"wide": wide}))
    strange = LoraWeights({"to_q": loras["b"].transformer["transformer_blocks.0.attn.to_q"]}, {})
    foreign = table.admit(make_request(loras=lora_requests(strange=1.0), weights={"strange": strange}))
    table.to_the_end()
    assert isinstance(bare.final_event, Completed)
    errors = [
        sitting.final_event.error for sitting in (lacking, larger, foreign) if isinstance(sitting.final_event, Failed)
    ]
    assert [type(error) for error in errors] == [LorasMissing, LorasTooLarge, EngineFailed]
    assert "rank of 76" in str(errors[1])
    assert resident_keys(table.loop.loras, "abcd") == {"a"}


def test_weights_that_were_copied_are_let_go(table: Table, checkpoint: Checkpoint) -> None:
    """They may lie in memory that others share, and that fills up while somebody holds on to it."""
    weights = make_lora(checkpoint, 1)
    alive = weakref.ref(weights.transformer["x_embedder"].down)
    table.admit(make_request(steps=9, loras=lora_requests(mine=1.0), weights={"mine": weights}))
    del weights
    gc.collect()
    assert alive() is not None
    table.rounds(1)
    gc.collect()
    assert alive() is None
    table.loop.fail_all(EngineFailed())


def test_bringing_loras_is_a_stage_of_its_own(table: Table) -> None:
    adapted, plain = table.seat("a"), table.seat("")
    table.to_the_end()
    stages = [
        list(sitting.final_event.stages_ms)
        for sitting in (adapted, plain)
        if isinstance(sitting.final_event, Completed)
    ]
    assert stages == [["queue", "lora", "text", "denoise", "decode"], ["queue", "text", "denoise", "decode"]]
