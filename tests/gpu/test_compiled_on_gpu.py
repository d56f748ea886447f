"""Compiled blocks, CUDA graphs and LoRA slots on a GPU: images close to plain ones, and no recompilations."""

from typing import Any

import numpy as np
import pytest
import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.compilation import compiled_graphs
from serve.engine.request import GenerationRequest
from serve.model_specs import Size
from serve.settings import Precision
from tests.gpu.helpers import SIZE, LoadOnGpu
from tests.images import psnr_db
from tests.unit.engine.loras import lora_requests, make_kronecker_lora, make_lora
from tests.unit.engine.requests import make_request, run_request, run_requests

MIN_PSNR_DB = 35
"""Between an image of compiled blocks and one of uncompiled blocks. Fused kernels round less often."""
COMPILED: dict[str, Any] = {"compile": ("transformer",), "cuda_graphs": False}
PLAIN: dict[str, Any] = {"compile": (), "cuda_graphs": False}


def _lora_request(
    checkpoint: Checkpoint, seed: int, scale: float = 1.0, rank: int = 16, size: Size = SIZE
) -> GenerationRequest:
    key = f"lora_{seed}_{rank}"
    weights = {key: make_lora(checkpoint, seed, rank)}
    return make_request(size=size, seeds=(seed,), loras=lora_requests(**{key: scale}), weights=weights)


def _mixed(checkpoint: Checkpoint) -> list[tuple[int, GenerationRequest]]:
    """One image and several, without and with LoRAs, as they join and leave."""
    return [
        (0, make_request(size=SIZE, seeds=(1,), steps=12)),
        (3, _lora_request(checkpoint, 2)),
        (5, _lora_request(checkpoint, 3, scale=-0.5, rank=4)),
        (9, make_request(size=SIZE, seeds=(4, 5), steps=3)),
        (30, _lora_request(checkpoint, 6)),
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_compiled_images_are_close_to_uncompiled_ones(load_on_gpu: LoadOnGpu, precision: Precision) -> None:
    checkpoint = load_on_gpu("dev", precision)
    _, compiled = run_requests(checkpoint, _mixed(checkpoint), **COMPILED)
    _, plain = run_requests(checkpoint, _mixed(checkpoint), **PLAIN)
    for one, other in zip(compiled, plain, strict=True):
        for image, expected in zip(one.pixels, other.pixels, strict=True):
            assert psnr_db(image, expected) >= MIN_PSNR_DB


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_new_sizes_loras_and_scales_are_not_compiled_again(load_on_gpu: LoadOnGpu, precision: Precision) -> None:
    checkpoint = load_on_gpu("dev", precision)
    run_requests(checkpoint, _mixed(checkpoint), **COMPILED)
    graphs = compiled_graphs()
    assert graphs > 0
    for request in (
        _lora_request(checkpoint, 2, scale=0.3),
        _lora_request(checkpoint, 7, rank=32),
        _lora_request(checkpoint, 8, size=(128, 320)),
        make_request(size=(320, 128), seeds=(1, 2, 3, 4)),
    ):
        run_request(checkpoint, request, **COMPILED)
    assert compiled_graphs() == graphs


def test_compiled_vae_decodes_nearly_the_same_image(load_on_gpu: LoadOnGpu) -> None:
    request = make_request("inpainting", size=SIZE)
    compiled, plain = (
        run_request(load_on_gpu("dev", "bf16", vae="bfloat16", compiled_vae=compiled), request, **PLAIN).pixels[0]
        for compiled in (True, False)
    )
    assert psnr_db(compiled, plain) >= MIN_PSNR_DB


@pytest.mark.parametrize("compile", [(), ("transformer",)], ids=["uncompiled", "compiled"])
def test_images_are_equal_with_and_without_cuda_graphs(load_on_gpu: LoadOnGpu, compile: tuple[str, ...]) -> None:
    checkpoint = load_on_gpu()
    _, with_graphs = run_requests(checkpoint, _mixed(checkpoint), compile=compile, cuda_graphs=True)
    _, plain = run_requests(checkpoint, _mixed(checkpoint), compile=compile, cuda_graphs=False)
    for one, other in zip(with_graphs, plain, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one.pixels, other.pixels, strict=True))


@pytest.mark.parametrize("pool", [PLAIN, COMPILED], ids=["uncompiled", "compiled"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_image_without_lora_keeps_its_bits_beside_an_image_with_one(
    load_on_gpu: LoadOnGpu, precision: Precision, pool: dict[str, Any]
) -> None:
    """Compared with a batch of the same size without LoRAs, which uses the same kernels."""
    checkpoint, plain = load_on_gpu("dev", precision), make_request(size=SIZE, seeds=(1,))
    pairs = []
    for other in (make_request(size=SIZE, seeds=(2,)), _lora_request(checkpoint, 2)):
        # The first request only loads the LoRA, so that both batches start together.
        run = [(0, _lora_request(checkpoint, 2)), (8, plain), (8, other)]
        _, (_, recorder, _) = run_requests(checkpoint, run, **pool)
        pairs.append(recorder.latents[0])
    assert torch.equal(*pairs)


def test_kronecker_lora_runs_in_a_compiled_transformer(load_on_gpu: LoadOnGpu) -> None:
    checkpoint = load_on_gpu()
    weights = {"lokr": make_kronecker_lora(checkpoint, 6, layers=r"attn\.to_|ff\.net")}
    request = make_request(size=SIZE, loras=lora_requests(lokr=0.5), weights=weights)
    compiled, plain = (run_request(checkpoint, request, **pool).pixels[0] for pool in (COMPILED, PLAIN))
    assert psnr_db(compiled, plain) >= MIN_PSNR_DB
