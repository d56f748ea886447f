"""Validation of the 21 inputs: coercion, bounds and reported errors."""

from typing import Any

import pytest

from serve.errors import InvalidInput
from serve.inputs import Inputs, shorten_name, validate_inputs

MAX_PROMPT_CHARS = 10_000


def validate(**raw: Any) -> Inputs:
    return validate_inputs({"prompt": "a boat", **raw}, MAX_PROMPT_CHARS)[0]


def invalid_fields(**raw: Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        validate(**raw)
    return [error.field for error in caught.value.field_errors]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_outputs", "2", 2),
        ("num_outputs", 2.0, 2),
        ("seed", "-7", -7),
        ("seed", 2**70, 2**70),
        ("guidance_scale", "3.5", 3.5),
        ("guidance_scale", 0, 0.0),
        ("go_fast", "true", True),
        ("go_fast", "false", False),
        ("megapixels", 1, "1"),
        ("megapixels", 1.0, "1"),
        ("megapixels", 0.25, "0.25"),
        ("megapixels", "0.25", "0.25"),
        ("width", "256", 256),
        ("lora_scale", -1, -1.0),
        ("prompt", "", ""),
        ("prompt", "x" * MAX_PROMPT_CHARS, "x" * MAX_PROMPT_CHARS),
        ("image", "HTTPS://example.com/a.png", "HTTPS://example.com/a.png"),
        ("image", "data:image/png;base64,AA==", "data:image/png;base64,AA=="),
    ],
)
def test_values_are_coerced(field: str, value: object, expected: object) -> None:
    assert getattr(validate(**{field: value}), field) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 5),
        ("prompt", ["a"]),
        ("prompt", "x" * (MAX_PROMPT_CHARS + 1)),
        ("image", "notaurl"),
        ("image", "ftp://example.com/a.png"),
        ("image", "file:///etc/passwd"),
        ("mask", 3),
        ("aspect_ratio", "2:1"),
        ("width", 255),
        ("height", 1441),
        ("prompt_strength", 1.01),
        ("prompt_strength", "strong"),
        ("model", "pro"),
        ("num_outputs", 0),
        ("num_outputs", 5),
        ("num_outputs", True),
        ("num_inference_steps", 51),
        ("num_inference_steps", 1.5),
        ("num_inference_steps", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", float("nan")),
        ("guidance_scale", [3]),
        ("guidance_scale", False),
        ("seed", 0.5),
        ("seed", float("inf")),
        ("output_format", "gif"),
        ("output_quality", 101),
        ("go_fast", "fast"),
        ("disable_safety_checker", 7),
        ("megapixels", 2),
        ("megapixels", True),
        ("megapixels", 10**400),
        ("lora_scale", 3.1),
        ("extra_lora_scale", -1.1),
        ("replicate_weights", 9),
    ],
)
def test_invalid_value_is_an_error_of_its_field(field: str, value: object) -> None:
    assert invalid_fields(**{field: value}) == [field]


def test_all_invalid_fields_are_reported_together() -> None:
    assert invalid_fields(num_outputs=9, seed="x", model="pro") == ["model", "num_outputs", "seed"]


def test_missing_prompt_is_an_error_of_the_prompt() -> None:
    with pytest.raises(InvalidInput) as caught:
        validate_inputs({}, MAX_PROMPT_CHARS)
    assert [(error.field, error.kind) for error in caught.value.field_errors] == [("prompt", "missing")]


def test_null_means_absent() -> None:
    nulls = {name: None for name in Inputs.model_fields if name != "prompt"}
    assert validate(**nulls) == validate()
    assert validate(**nulls).model_fields_set == {"prompt"}


def test_unknown_keys_are_ignored_and_returned() -> None:
    inputs, ignored_keys = validate_inputs({"prompt": "a boat", "negative_prompt": "x", "hue": None}, MAX_PROMPT_CHARS)
    assert ignored_keys == ("negative_prompt",)
    assert inputs == validate()


@pytest.mark.parametrize("field", ["image", "mask"])
def test_empty_image_is_an_error_that_says_how_to_leave_it_out(field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        validate(**{field: ""})
    [error] = caught.value.field_errors
    assert error.field == field
    assert "empty" in error.message
    assert "null" in error.message


def test_shortened_name_is_one_printable_line() -> None:
    assert shorten_name("a\nUsing seed: 1\r\x00\u2028\ud800") == "a\\nUsing seed: 1\\r\\x00\\u2028\\ud800"
    assert shorten_name("größe 大") == "größe 大"
    assert shorten_name("x" * 64) == "x" * 64
    assert shorten_name("x" * 65) == "x" * 63 + "…"


def test_error_message_does_not_contain_the_invalid_value() -> None:
    with pytest.raises(InvalidInput) as caught:
        validate(image="s3://bucket/secret?token=abc")
    assert "abc" not in str(caught.value)
