"""Requests that benchmarks run through an engine, and their random LoRAs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from torch import nn

from benchmarks.engine_runs import RequestFailed, generate, make_lora, make_request
from benchmarks.lora.fixtures import load_random_lora, make_lora_slots
from serve.engine.checkpoint import Checkpoint
from serve.engine.engine import Engine
from serve.engine.request import Completed, GenerationRequest, Listener
from serve.settings import PoolSettings
from tests.unit.engine.checkpoints import Checkpoints

SIZE = (64, 64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints")).get("dev", "bf16")


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    engine = Engine(checkpoint, PoolSettings(model="", scheduling_policy="turns", num_threads=1))
    engine.start()
    yield engine
    engine.stop()


class FakeEngine:
    """Records whether its thread waits when requests are submitted. They end at once."""

    def __init__(self) -> None:
        self._thread = Thread()
        self.waits_at_submission: list[bool] = []

    def run_on_device(self, action: Callable[[], None]) -> None:
        self._thread = Thread(target=action)
        self._thread.start()

    def submit(self, request: GenerationRequest, listener: Listener) -> None:
        self.waits_at_submission.append(self._thread.is_alive())
        listener(Completed({}, mean_batch=1.0))


def test_requests_are_submitted_while_the_engine_waits() -> None:
    engine: Any = FakeEngine()
    assert len(generate(engine, [make_request(SIZE, 1)] * 3).ends) == 3
    assert engine.waits_at_submission == [True] * 3


def test_requests_share_all_batches(engine: Engine) -> None:
    run = generate(engine, [make_request(SIZE, 3, seeds=(seed,)) for seed in range(4)])
    assert [end.mean_batch for end in run.ends] == [4.0] * 4
    assert run.seconds > 0


def test_failed_request_raises_an_error(engine: Engine, checkpoint: Checkpoint) -> None:
    request = make_request(SIZE, 1, loras={"a": make_lora(checkpoint.transformer, 2, seed=0)})
    with pytest.raises(RequestFailed, match="1 of 2"):
        generate(engine, [make_request(SIZE, 1), replace(request, lora_weights={})])
    assert len(generate(engine, [request]).ends) == 1


def test_random_lora_adapts_every_linear_layer_and_is_seeded(checkpoint: Checkpoint) -> None:
    first, same, other = (make_lora(checkpoint.transformer, 3, seed) for seed in (0, 0, 1))
    paths = {path for path, layer in checkpoint.transformer.named_modules() if isinstance(layer, nn.Linear)}
    assert first.transformer.keys() == paths
    path = min(paths)
    assert first.transformer[path].down.equal(same.transformer[path].down)
    assert not first.transformer[path].down.equal(other.transformer[path].down)


def test_lora_slots_fit_exactly_the_rank(checkpoint: Checkpoint) -> None:
    slots = make_lora_slots(checkpoint.transformer, 5)
    assert slots.count == 5
    active = load_random_lora(slots, checkpoint.transformer, rank=5)
    assert active.selection is not None
    assert len(active.selection.scales) == 5
