"""What happens between two steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import Canceled, GenerationRequest
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.errors import EngineFailed
from serve.settings import PoolSettings
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.faults import Faulty
from tests.unit.engine.requests import RequestRecorder, make_request, run_requests


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return checkpoints.get("dev", "bf16")


def _watched(checkpoint: Checkpoint, told: Callable[[str], object]) -> Checkpoint:
    """Tells of every part that works."""

    def tell(name: str) -> Callable[..., bool]:
        return lambda *_, **__: bool(told(name)) and False

    vae = Faulty(checkpoint.vae, tell("encode"), RuntimeError(), "encode")
    parts: dict[str, Any] = {
        "t5": Faulty(checkpoint.t5, tell("text"), RuntimeError()),
        "transformer": Faulty(checkpoint.transformer, tell("step"), RuntimeError()),
        "vae": Faulty(vae, tell("decode"), RuntimeError(), "decode"),
    }
    return replace(checkpoint, **parts)


def _worked(checkpoint: Checkpoint, arrivals: list[tuple[int, GenerationRequest]]) -> list[str]:
    names: list[str] = []
    run_requests(_watched(checkpoint, names.append), arrivals)
    return names


def test_at_most_one_picture_is_encoded_or_decoded_between_two_steps(checkpoint: Checkpoint) -> None:
    """Four pictures are ready at once and two come in while a fifth image still steps."""
    arrivals = [
        (0, make_request(seeds=(5,), steps=20)),
        (0, make_request(seeds=(1, 2, 3, 4), steps=2)),
        (3, make_request("image_to_image")),
        (3, make_request("inpainting")),
    ]
    names = _worked(checkpoint, arrivals)
    assert names.count("decode") == 4 + 1 + 2
    assert names.count("encode") == 2
    last_step = len(names) - names[::-1].index("step")
    pictures = " ".join("picture" if name in ("encode", "decode") else name for name in names[:last_step])
    assert "picture picture" not in pictures.replace(" text", "")


def test_all_prompts_that_came_are_read_before_the_next_step(checkpoint: Checkpoint) -> None:
    arrivals = [(0, make_request(prompt=prompt, steps=2)) for prompt in ("a fish", "a star", "a fish")]
    assert _worked(checkpoint, arrivals) == ["text", "text", "step", "step", "decode", "decode", "decode"]


def test_the_picture_of_a_job_is_encoded_once_for_all_of_its_images(checkpoint: Checkpoint) -> None:
    names = _worked(checkpoint, [(0, make_request("image_to_image", seeds=(1, 2, 3), steps=2, strength=1.0))])
    assert names == ["text", "encode", "step", "step", "decode", "decode", "decode"]


@pytest.mark.parametrize("during", ["text", "encode", "step", "decode"])
def test_who_leaves_during_a_piece_of_work_has_no_further_one(checkpoint: Checkpoint, during: str) -> None:
    names: list[str] = []

    def leave(name: str) -> None:
        names.append(name)
        if name == during:
            sitting.state.cancel_token.cancelled = True

    sitting = RequestRecorder(0, make_request("image_to_image", steps=5, strength=1.0, seeds=(1, 2)))
    loop = Scheduler(_watched(checkpoint, leave), PoolSettings(model=""), Watchdog())
    loop.add([sitting.state], ())
    while loop.has_work:
        loop.step()
    assert isinstance(sitting.final_event, Canceled)
    assert names.count(during) == 1
    assert names[-1] == during
    assert sitting.pixels == []


def test_sizes_take_turns(checkpoint: Checkpoint) -> None:
    sittings = [
        RequestRecorder(0, make_request(size=(96, 64), steps=9)),
        RequestRecorder(1, make_request(size=(64, 64), steps=3)),
    ]
    loop = Scheduler(checkpoint, PoolSettings(model=""), Watchdog())
    loop.add([sitting.state for sitting in sittings], ())
    steps = []
    for _ in range(8):
        loop.step()
        steps.append(tuple(sitting.steps for sitting in sittings))
    assert steps == [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (5, 3)]
    loop.fail_all(EngineFailed())
