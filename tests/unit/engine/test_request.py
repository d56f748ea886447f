from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serve.engine.request import GenerationRequest
from tests.unit.engine.jobs import make_job, make_mask, make_picture


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
def test_a_job_has_the_pictures_that_its_plan_speaks_of(mode: Any) -> None:
    job = make_job(mode)
    assert (job.image is None, job.mask is None) == (mode == "text_to_image", mode != "inpainting")


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        pytest.param("text_to_image", {"image": make_picture((96, 64))}, id="a picture too many"),
        pytest.param("image_to_image", {"image": None}, id="no picture"),
        pytest.param("image_to_image", {"image": make_picture((64, 96))}, id="a picture of another size"),
        pytest.param("image_to_image", {"image": np.zeros((64, 96), np.uint8)}, id="a picture without colours"),
        pytest.param("inpainting", {"mask": None}, id="no mask"),
        pytest.param("inpainting", {"mask": make_mask((96, 80))}, id="a mask of another size"),
    ],
)
def test_pictures_that_do_not_fit_the_plan_are_refused(mode: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{mode} at 96x64 needs"):
        replace(make_job(mode), **change)


def test_a_plan_without_a_size_is_refused() -> None:
    plan = make_job().plan.model_copy(update={"size": None})
    with pytest.raises(ValueError, match="no size"):
        GenerationRequest(plan)
