"""The 21 inputs: what is taken, what is refused, and that every fault is told at once."""

from typing import Any

import pytest

from serve.errors import InvalidInput
from serve.inputs import Inputs, validate_inputs

LIMIT = 10_000


def read(**raw: Any) -> Inputs:
    return validate_inputs({"prompt": "a boat", **raw}, LIMIT)[0]


def faulty_fields(**raw: Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        read(**raw)
    return [fault.field for fault in caught.value.field_errors]


@pytest.mark.parametrize(
    ("field", "given", "taken"),
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
        ("prompt", "x" * LIMIT, "x" * LIMIT),
        ("image", "HTTPS://example.com/a.png", "HTTPS://example.com/a.png"),
        ("image", "data:image/png;base64,AA==", "data:image/png;base64,AA=="),
    ],
)
def test_values_are_coerced_where_their_meaning_is_plain(field: str, given: object, taken: object) -> None:
    assert getattr(read(**{field: given}), field) == taken


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("prompt", 5),
        ("prompt", ["a"]),
        ("prompt", "x" * (LIMIT + 1)),
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
        ("lora_scale", 3.1),
        ("extra_lora_scale", -1.1),
        ("replicate_weights", 9),
    ],
)
def test_a_value_that_does_not_fit_is_a_fault_of_its_field(field: str, given: object) -> None:
    assert faulty_fields(**{field: given}) == [field]


def test_every_faulty_field_is_told_at_once() -> None:
    assert faulty_fields(num_outputs=9, seed="x", model="pro") == ["model", "num_outputs", "seed"]


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidInput, match="prompt: Field required"):
        validate_inputs({}, LIMIT)


def test_null_is_the_same_as_absent() -> None:
    nulls = {name: None for name in Inputs.model_fields if name != "prompt"}
    assert read(**nulls) == read()
    assert read(**nulls).model_fields_set == {"prompt"}


def test_unknown_keys_are_dropped_and_named() -> None:
    inputs, dropped = validate_inputs({"prompt": "a boat", "negative_prompt": "x", "hue": None}, LIMIT)
    assert dropped == ("negative_prompt",)
    assert inputs == read()


def test_a_fault_never_repeats_what_was_sent() -> None:
    with pytest.raises(InvalidInput) as caught:
        read(image="s3://bucket/secret?token=abc")
    assert "abc" not in str(caught.value)
