"""The safety checker on a GPU: both stages, in half precision."""

from pathlib import Path

import numpy as np
import pytest

from serve.engine.safety_checker import build_checker
from serve.settings import SafetySettings
from tests.gpu.helpers import DEVICE
from tests.safety_checkpoints import FLAGS_ALL, FLAGS_NONE, make_classifier, make_concepts


@pytest.mark.parametrize(
    ("threshold", "normal", "flagged"), [(FLAGS_ALL, -9.0, True), (FLAGS_ALL, 9.0, False), (FLAGS_NONE, -9.0, False)]
)
def test_both_stages_decide_on_gpu(tmp_path: Path, threshold: float, normal: float, flagged: bool) -> None:
    settings = SafetySettings(
        checker="flux",
        concept_model=str(make_concepts(tmp_path / "concepts", threshold)),
        classifier_model=str(make_classifier(tmp_path / "classifier", normal)),
        device=DEVICE,
    )
    checker = build_checker(settings, None)
    assert checker.on_device == (DEVICE != "cpu")
    assert checker.is_flagged(np.random.default_rng(0).integers(0, 256, (64, 48, 3)).astype(np.uint8)) is flagged
