from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.requests import make_image, make_mask, make_request


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
def test_a_job_has_the_pictures_that_its_plan_speaks_of(mode: Any) -> None:
    job = make_request(mode)
    assert (job.image is None, job.mask is None) == (mode == "text_to_image", mode != "inpainting")


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        pytest.param("text_to_image", {"image": make_image((96, 64))}, id="a picture too many"),
        pytest.param("image_to_image", {"image": None}, id="no picture"),
        pytest.param("image_to_image", {"image": make_image((64, 96))}, id="a picture of another size"),
        pytest.param("image_to_image", {"image": np.zeros((64, 96), np.uint8)}, id="a picture without colours"),
        pytest.param("image_to_image", {"strength": None}, id="no strength"),
        pytest.param("text_to_image", {"mask": make_mask((96, 64))}, id="a mask without an image"),
        pytest.param("inpainting", {"mask": make_mask((96, 80))}, id="a mask of another size"),
    ],
)
def test_pictures_that_do_not_fit_the_plan_are_refused(mode: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"image|mask"):
        replace(make_request(mode), **change)
