"""Images with LoRAs in mixed batches equal the same images generated alone."""

import random
from collections.abc import Mapping

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
from tests.unit.engine.faults import is_first_step_of, with_faulty_steps
from tests.unit.engine.loras import lora_requests, make_kronecker_lora, make_lora
from tests.unit.engine.requests import RequestRecorder, make_request, run_request, run_requests

TINY_SIZE = (64, 64)
LORA_BYTES_FOR_ALL = 16 * 2**20
FAILING_SEED = 99


def _loras(checkpoint: Checkpoint) -> Mapping[str, LoraWeights]:
    return {
        "all_layers": make_lora(checkpoint, 1, rank=5, clip=True),
        "attention": make_lora(checkpoint, 2, rank=20, layers=r"attn\."),
        "biases": make_lora(checkpoint, 5, rank=2, layers="single", biases=True),
        "kronecker": make_kronecker_lora(checkpoint, 6, layers=r"attn\.to_|ff\.net"),
        "two_ranks": LoraWeights(
            transformer={
                **make_lora(checkpoint, 3, rank=1, layers="ff").transformer,
                **make_lora(checkpoint, 4, rank=33, layers="single.*proj_mlp").transformer,
            },
            clip={},
        ),
    }


def _mixed_arrivals(checkpoint: Checkpoint) -> list[tuple[int, GenerationRequest]]:
    """Requests of one size that differ in all other fields, each with the iteration before which it is added."""
    loras = _loras(checkpoint)
    return [
        (0, make_request(seeds=(1,), steps=4)),
        (0, make_request(seeds=(1, 2), steps=2, loras=lora_requests(all_layers=1.0), weights=loras)),
        (0, make_request(seeds=(1,), steps=3, loras=lora_requests(all_layers=-0.6), weights=loras)),
        (
            1,
            make_request(
                "inpainting", seeds=(3,), steps=3, loras=lora_requests(attention=1.5, two_ranks=0.5), weights=loras
            ),
        ),
        (2, make_request(seeds=(4,), steps=1, prompt="a fish", loras=lora_requests(two_ranks=2.0), weights=loras)),
        (2, make_request(seeds=(5,), steps=2, loras=lora_requests(biases=1.0, kronecker=-0.8), weights=loras)),
    ]


@pytest.mark.parametrize(
    ("precision", "geometry", "batch_across_loras"),
    [("bf16", WIDE, True), ("fp8", SMALL, True), ("bf16", SMALL, False)],
)
def test_images_in_a_batch_of_different_loras_equal_single_images_to_the_bit(
    checkpoints: Checkpoints, precision: Precision, geometry: Geometry, batch_across_loras: bool
) -> None:
    checkpoint = checkpoints.get("dev", precision, geometry=geometry, lora_bytes=LORA_BYTES_FOR_ALL)
    arrivals = _mixed_arrivals(checkpoint)
    scheduler, recorders = run_requests(checkpoint, arrivals, batch_across_loras=batch_across_loras)
    assert scheduler.executor.batches < scheduler.executor.image_steps / 2 or not batch_across_loras
    for recorder, (_, request) in zip(recorders, arrivals, strict=True):
        single = run_request(checkpoint, request)
        assert all(torch.equal(recorder.latents[image], latents) for image, latents in single.latents.items())
        assert np.array_equal(recorder.pixels, single.pixels)


def test_float32_batch_of_different_loras_is_within_one_millionth(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "float32")
    arrivals = _mixed_arrivals(checkpoint)
    _, recorders = run_requests(checkpoint, arrivals)
    for recorder, (_, request) in zip(recorders, arrivals, strict=True):
        for image, latents in run_request(checkpoint, request).latents.items():
            assert (recorder.latents[image] - latents).abs().max() <= 1e-6 * latents.abs().max()


def test_batch_across_loras_off_separates_different_scales(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "bf16")
    loras = _loras(checkpoint)
    first = (0, make_request(steps=1, loras=lora_requests(all_layers=1.0), weights=loras))
    arrivals = [(1, make_request(steps=2, loras=lora_requests(all_layers=scale))) for scale in (1.0, 0.5, 1.0)]
    for batch_across_loras, mean_batches in ((True, [3, 3, 3]), (False, [2, 1, 2])):
        _, (_, *recorders) = run_requests(checkpoint, [first, *arrivals], batch_across_loras=batch_across_loras)
        events = [recorder.final_event for recorder in recorders]
        assert [event.mean_batch for event in events if isinstance(event, Completed)] == mean_batches


@pytest.mark.parametrize("precision", ["bf16", "fp8", "float32"])
def test_scales_of_the_same_lora_add_up_and_scale_0_is_no_lora(checkpoints: Checkpoints, precision: Precision) -> None:
    checkpoint = checkpoints.get("dev", precision)
    weights = _loras(checkpoint)

    def latents(*scales: float) -> Tensor:
        loras = tuple(lora for scale in scales for lora in lora_requests(all_layers=scale))
        return run_request(checkpoint, make_request(steps=2, loras=loras, weights=weights)).latents[0]

    assert torch.equal(latents(0.0), latents())
    assert torch.equal(latents(0.75, -0.75), latents())
    assert torch.equal(latents(1.0, 0.5), latents(1.5))
    assert not torch.equal(latents(1.5), latents(1.0))
    assert not torch.equal(latents(-1.0), latents(1.0))


def _without_lora_hooks(checkpoints: Checkpoints, precision: Precision) -> Checkpoint:
    checkpoint = checkpoints.load("dev", precision)
    for network in (checkpoint.transformer, checkpoint.clip):
        for module in network.modules():
            module._forward_hooks.clear()
    return checkpoint


class RandomRequests:
    """Makes requests with random LoRAs and scales. About a third of them fail, for different reasons."""

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
        weights = self._loras if self._random.random() < 0.8 else {}
        seed = FAILING_SEED if self._random.random() < 0.2 else self._random.randrange(FAILING_SEED)
        return make_request(
            size=TINY_SIZE,
            steps=1,
            seeds=(seed,),
            loras=lora_requests(**scales),
            weights=weights,
        )


@pytest.mark.parametrize(("precision", "count"), [("bf16", 30), ("fp8", 18)])
def test_requests_with_loras_do_not_change_requests_without(
    checkpoints: Checkpoints, precision: Precision, count: int
) -> None:
    """Every sixth request has no LoRAs. All of these give the same image, and no weight changes."""
    checkpoint = checkpoints.load("dev", precision)
    requests, plain = RandomRequests(checkpoint, seed=3), make_request(size=TINY_SIZE, seeds=(5,), steps=1)
    expected = run_request(_without_lora_hooks(checkpoints, precision), plain).pixels[0]
    weights_before = _weights(checkpoint)
    fails = is_first_step_of(checkpoint, TINY_SIZE, FAILING_SEED)
    faulty = with_faulty_steps(checkpoint, fails, RuntimeError("no such kernel"))
    scheduler = Scheduler(faulty, PoolSettings(model=""), Watchdog())
    recorders = [RequestRecorder(number, plain if number % 6 == 0 else requests.next()) for number in range(count)]
    for start in range(0, count, 6):
        scheduler.add([recorder.state for recorder in recorders[start : start + 6]], ())
        recorders[start + 1].state.cancel_token.cancelled = start % 4 == 0
        scheduler.step()
        scheduler.step()
    while scheduler.has_work:
        scheduler.step()
    assert all(np.array_equal(recorder.pixels[0], expected) for recorder in recorders[::6])
    final_events = [type(recorder.final_event) for recorder in recorders if recorder.state.parameters.loras]
    assert len(final_events) == count * 5 / 6
    assert min(final_events.count(Completed), final_events.count(Failed)) >= count / 5
    assert final_events.count(Canceled) >= count / 24
    assert weights_before == _weights(checkpoint)


def _weights(checkpoint: Checkpoint) -> dict[str, bytes]:
    networks = (checkpoint.transformer, checkpoint.clip, checkpoint.t5)
    return {
        f"{index}.{name}": tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        for index, network in enumerate(networks)
        for name, tensor in network.state_dict().items()
    }
