from collections.abc import Callable
from functools import cache

import pytest
import torch

from serve.engine.checkpoint import Checkpoint, load_checkpoint
from serve.model_specs import VariantName
from serve.settings import Device, Dtype, Dtypes, ModelSettings, PoolSettings, Precision
from test_checkpoints import checkpoint as test_checkpoint

DEVICE: Device = "cuda"
Load = Callable[..., Checkpoint]


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")


@pytest.fixture(scope="session")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads the embedded checkpoint to the card; networks of one precision are loaded once."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def load_it(
        variant: VariantName = "dev", precision: Precision = "bf16", vae: Dtype = "float32", quantize_t5: bool = False
    ) -> Checkpoint:
        model = ModelSettings(
            variant=variant, source=str(test_checkpoint.ensure(variant, folder)), max_sequence_length=128
        )
        dtypes = Dtypes(transformer="bfloat16", text_encoders="bfloat16", vae=vae)
        row = {"precision": precision, "quantize_t5": quantize_t5, "dtypes": {DEVICE: dtypes}, "device": DEVICE}
        return load_checkpoint(model, PoolSettings.model_validate({"model": "dev"} | row), None)

    return load_it
