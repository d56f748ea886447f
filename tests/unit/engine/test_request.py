"""Validation of generation requests."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.requests import Mode, make_image, make_mask, make_request


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
def test_request_is_valid_in_every_mode(mode: Mode) -> None:
    request = make_request(mode)
    assert (request.image is None, request.mask is None) == (mode == "text_to_image", mode != "inpainting")


@pytest.mark.parametrize(
    ("mode", "fields"),
    [
        pytest.param("text_to_image", {"image": make_image((96, 64))}, id="image without strength"),
        pytest.param("image_to_image", {"image": None}, id="strength without image"),
        pytest.param("image_to_image", {"image": make_image((64, 96))}, id="image of another size"),
        pytest.param("image_to_image", {"image": np.zeros((64, 96), np.uint8)}, id="image without color channels"),
        pytest.param("image_to_image", {"strength": None}, id="no strength"),
        pytest.param("text_to_image", {"mask": make_mask((96, 64))}, id="mask without image"),
        pytest.param("inpainting", {"mask": make_mask((96, 80))}, id="mask of another size"),
    ],
)
def test_contradictory_fields_raise_value_error(mode: Mode, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"image|mask"):
        replace(make_request(mode), **fields)
