"""Pictures with LoRAs: each is what it is alone, and nothing of one is in another."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import Canceled, Completed, Failed, GenerationRequest
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.lora.weights import LoraWeights, LowRank
from serve.settings import PoolSettings, Precision
from test_checkpoints.networks import Geometry
from tests.unit.engine.checkpoints import SMALL, WIDE, Checkpoints
from tests.unit.engine.faults import Faulty
from tests.unit.engine.loras import lora_requests, make_lora
from tests.unit.engine.requests import RequestRecorder, make_request, run_request, run_requests

TINY = (64, 64)
ROOM_FOR_ALL = 16 * 2**20


def _loras(checkpoint: Checkpoint) -> Mapping[str, LoraWeights]:
    return {
        "whole": make_lora(checkpoint, 1, rank=5, clip=True),
        "attention": make_lora(checkpoint, 2, rank=20, layers=r"attn\."),
        "ranks": LoraWeights(
            transformer={
                **make_lora(checkpoint, 3, rank=1, layers="ff").transformer,
                **make_lora(checkpoint, 4, rank=33, layers="single.*proj_mlp").transformer,
            },
            clip={},
        ),
    }


def _mixed_jobs(checkpoint: Checkpoint) -> list[tuple[int, GenerationRequest]]:
    """Of one size, and different in all else; each with the round in which it arrives."""
    loras = _loras(checkpoint)
    return [
        (0, make_request(seeds=(1,), steps=4)),
        (0, make_request(seeds=(1, 2), steps=2, loras=lora_requests(whole=1.0), weights=loras)),
        (0, make_request(seeds=(1,), steps=3, loras=lora_requests(whole=-0.6), weights=loras)),
        (
            1,
            make_request(
                "inpainting", seeds=(3,), steps=3, loras=lora_requests(attention=1.5, ranks=0.5), weights=loras
            ),
        ),
        (2, make_request(seeds=(4,), steps=1, prompt="a fish", loras=lora_requests(ranks=2.0), weights=loras)),
    ]


@pytest.mark.parametrize(
    ("precision", "geometry", "batch_across_loras"),
    [("bf16", WIDE, True), ("fp8", SMALL, True), ("bf16", SMALL, False)],
)
def test_in_a_batch_of_different_loras_each_image_is_what_it_is_alone(
    checkpoints: Checkpoints, precision: Precision, geometry: Geometry, batch_across_loras: bool
) -> None:
    checkpoint = checkpoints.get("dev", precision, geometry=geometry, lora_bytes=ROOM_FOR_ALL)
    jobs = _mixed_jobs(checkpoint)
    loop, sittings = run_requests(checkpoint, jobs, batch_across_loras=batch_across_loras)
    assert loop.executor.batches < loop.executor.image_steps / 2 or not batch_across_loras
    for sitting, (_, job) in zip(sittings, jobs, strict=True):
        alone = run_request(checkpoint, job)
        assert all(torch.equal(sitting.latents[image], latents) for image, latents in alone.latents.items())
        assert np.array_equal(sitting.pixels, alone.pixels)


def test_in_float32_it_is_within_a_millionth(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "float32")
    jobs = _mixed_jobs(checkpoint)
    _, sittings = run_requests(checkpoint, jobs)
    for sitting, (_, job) in zip(sittings, jobs, strict=True):
        for image, latents in run_request(checkpoint, job).latents.items():
            assert (sitting.latents[image] - latents).abs().max() <= 1e-6 * latents.abs().max()


def test_kept_apart_by_setting_no_pass_holds_two_mixes(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "bf16")
    loras = _loras(checkpoint)
    bringing = (0, make_request(steps=1, loras=lora_requests(whole=1.0), weights=loras))
    jobs = [(1, make_request(steps=2, loras=lora_requests(whole=scale))) for scale in (1.0, 0.5, 1.0)]
    for batch_across_loras, means in ((True, [3, 3, 3]), (False, [2, 1, 2])):
        _, (_, *sittings) = run_requests(checkpoint, [bringing, *jobs], batch_across_loras=batch_across_loras)
        ends = [sitting.final_event for sitting in sittings]
        assert [end.mean_batch for end in ends if isinstance(end, Completed)] == means


@pytest.mark.parametrize("precision", ["bf16", "fp8", "float32"])
def test_scale_0_is_no_lora_and_the_same_twice_adds_up(checkpoints: Checkpoints, precision: Precision) -> None:
    checkpoint = checkpoints.get("dev", precision)
    loras = _loras(checkpoint)

    def latents(*scales: float) -> Tensor:
        chosen = tuple(use for scale in scales for use in lora_requests(whole=scale))
        return run_request(checkpoint, make_request(steps=2, loras=chosen, weights=loras)).latents[0]

    assert torch.equal(latents(0.0), latents())
    assert torch.equal(latents(0.75, -0.75), latents())
    assert torch.equal(latents(1.0, 0.5), latents(1.5))
    assert not torch.equal(latents(1.5), latents(1.0))
    assert not torch.equal(latents(-1.0), latents(1.0))


def _never_had_loras(checkpoints: Checkpoints, precision: Precision) -> Checkpoint:
    checkpoint = checkpoints.load("dev", precision)
    for network in (checkpoint.transformer, checkpoint.clip):
        for module in network.modules():
            module._forward_hooks.clear()
    return checkpoint


class Requests:
    """Requests with random LoRAs and scales, a third of which fail on the way."""

    def __init__(self, checkpoint: Checkpoint, seed: int) -> None:
        self._random = random.Random(seed)
        self._loras = {
            f"lora {number}": make_lora(checkpoint, number, rank=4 * (1 + number % 5), clip=number % 2 == 0)
            for number in range(12)
        }
        broken = LowRank(torch.ones(2, 3), torch.ones(3, 2))
        self._loras["broken"] = LoraWeights({**self._loras["lora 0"].transformer, "x_embedder": broken}, {})
        self._loras["too large"] = make_lora(checkpoint, 0, rank=300, layers="x_embedder")

    def next(self) -> GenerationRequest:
        names = self._random.sample(sorted(self._loras), self._random.choice((1, 2)))
        scales = {name: self._random.choice((-1.0, 0.0, 0.5, 1.0, 3.0)) for name in names}
        carried = self._loras if self._random.random() < 0.8 else {}
        guidance = 6.5 if self._random.random() < 0.2 else 3.0
        return make_request(
            size=TINY,
            steps=1,
            seeds=(self._random.randrange(99),),
            guidance=guidance,
            loras=lora_requests(**scales),
            weights=carried,
        )


@pytest.mark.parametrize(("precision", "count"), [("bf16", 30), ("fp8", 18)])
def test_pictures_without_loras_are_the_same_before_between_and_after_many_requests_with_them(
    checkpoints: Checkpoints, precision: Precision, count: int
) -> None:
    checkpoint = checkpoints.load("dev", precision)
    requests, plain = Requests(checkpoint, seed=7), make_request(size=TINY, seeds=(5,), steps=1)
    pure = run_request(_never_had_loras(checkpoints, precision), plain).pixels[0]
    weights = _state(checkpoint)

    def breaks(guidance: Tensor, **_: Any) -> bool:
        return bool((guidance == 6.5).any())

    transformer: Any = Faulty(checkpoint.transformer, breaks, RuntimeError("no such kernel"))
    loop = Scheduler(replace(checkpoint, transformer=transformer), PoolSettings(model=""), Watchdog())
    sittings = [RequestRecorder(number, plain if number % 6 == 0 else requests.next()) for number in range(count)]
    for start in range(0, count, 6):
        loop.add([sitting.state for sitting in sittings[start : start + 6]], ())
        sittings[start + 1].state.cancel_token.cancelled = start % 4 == 0
        loop.step()
        loop.step()
    while loop.has_work:
        loop.step()
    assert all(np.array_equal(sitting.pixels[0], pure) for sitting in sittings[::6])
    ends = [type(sitting.final_event) for sitting in sittings if sitting.state.request.loras]
    assert len(ends) == count * 5 / 6
    assert min(ends.count(Completed), ends.count(Failed)) >= count / 5
    assert ends.count(Canceled) >= count / 24
    assert weights == _state(checkpoint)


def _state(checkpoint: Checkpoint) -> dict[str, bytes]:
    networks = (checkpoint.transformer, checkpoint.clip, checkpoint.t5)
    return {
        f"{index}.{name}": tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        for index, network in enumerate(networks)
        for name, tensor in network.state_dict().items()
    }
