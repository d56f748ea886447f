"""Tables of the Images API that must agree with others."""

from typing import get_args

import pytest

from serve.api.openai.parameters import OWN_INPUTS, Quality
from serve.api.openai.request import IMAGES_PER_PREDICTION, MAX_STEPS, QUALITIES, parse_request
from serve.errors import InvalidInput
from serve.inputs import Inputs
from serve.model_specs import Size
from serve.settings import Settings


def test_limits_are_those_of_the_inputs() -> None:
    properties = Inputs.model_json_schema()["properties"]
    for name, maximum in (("num_outputs", IMAGES_PER_PREDICTION), ("num_inference_steps", MAX_STEPS)):
        assert maximum in properties[name].values()


def test_every_quality_has_an_effect() -> None:
    assert set(get_args(Quality)) == QUALITIES.keys()


def test_own_inputs_are_those_without_a_name_in_this_api() -> None:
    assert set(OWN_INPUTS) == {
        "aspect_ratio", "width", "height", "megapixels", "prompt_strength", "num_inference_steps", "guidance_scale",
        "disable_safety_checker", "go_fast", "replicate_weights", "lora_scale", "extra_lora", "extra_lora_scale",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("auto", None), ("1024x1024", (1024, 1024)), ("256x1440", (256, 1440)), ("2000x1000", (1440, 720)),
        ("3840x2160", (1440, 810)), ("99999x99999", (1440, 1440)),
    ],
)  # fmt: skip
def test_size_is_scaled_down_to_the_largest_side(text: str, size: Size | None) -> None:
    assert parse_request({"prompt": "a cat", "size": text}, Settings()).size == size


@pytest.mark.parametrize(
    "text", ["", "1024", "1024x", "1024X1024", "-1x5", "255x512", "99999x1", "1024x1024x3", "\uff11x\uff11"]
)
def test_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_request({"prompt": "a cat", "size": text}, Settings())
    assert [error.field for error in raised.value.field_errors] == ["size"]
