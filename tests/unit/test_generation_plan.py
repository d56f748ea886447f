"""Planning a prediction: pool, size, seeds, LoRAs, safety check and notes."""

from typing import Any

import pytest

from serve.errors import InvalidInput
from serve.generation_plan import LORA_SCALE_FIELDS, GenerationPlan, PlannedLora, make_plan, plan_loras
from serve.inputs import Inputs, validate_inputs
from serve.model_specs import Size
from serve.output_sizes import SIZES
from serve.settings import Settings

IMAGE_URL = "https://example.com/a.png"
RANDOM_SEED = 1234


def plan(settings: Settings | None = None, image_size: Size | None = None, **raw: Any) -> GenerationPlan:
    inputs = validate(**raw)
    return make_plan(inputs, settings or Settings(), RANDOM_SEED, reference_keys(inputs), image_size)


def validate(**raw: Any) -> Inputs:
    return validate_inputs({"prompt": "a boat", **raw}, 10_000)[0]


def reference_keys(inputs: Inputs) -> dict[str, str]:
    """The LoRA inputs by field. These tests use the text itself as the reference key."""
    texts = {field: (getattr(inputs, field) or "").strip() for field in LORA_SCALE_FIELDS}
    return {field: text for field, text in texts.items() if text}


def field_errors(settings: Settings | None = None, image_size: Size | None = None, **raw: Any) -> dict[str, str]:
    """The messages by field of the error that these inputs raise."""
    with pytest.raises(InvalidInput) as caught:
        plan(settings, image_size, **raw)
    return {error.field: error.message for error in caught.value.field_errors}


@pytest.mark.parametrize(
    ("raw", "pool"),
    [
        ({}, "dev-bf16"),
        ({"go_fast": True}, "dev-fp8"),
        ({"model": "schnell"}, "schnell"),
        ({"model": "schnell", "go_fast": True}, "schnell"),
        ({"go_fast": True, "image": IMAGE_URL}, "dev-fp8"),
        ({"go_fast": True, "image": IMAGE_URL, "mask": IMAGE_URL}, "dev-fp8"),
        ({"go_fast": True, "aspect_ratio": "custom", "width": 512, "height": 512}, "dev-bf16"),
        ({"go_fast": True, "aspect_ratio": "custom", "image": IMAGE_URL}, "dev-bf16"),
        ({"aspect_ratio": "custom", "width": 512, "height": 512}, "dev-bf16"),
    ],
)
def test_pool_depends_on_model_go_fast_and_custom_size(raw: dict[str, Any], pool: str) -> None:
    assert plan(**raw).pool == pool


def test_custom_sizes_run_in_fp8_if_the_settings_allow_it() -> None:
    custom: dict[str, Any] = {"go_fast": True, "aspect_ratio": "custom", "width": 512, "height": 512}
    assert plan(Settings(custom_sizes_in_fp8=True), **custom).pool == "dev-fp8"


def test_pool_added_in_the_settings_is_used() -> None:
    tree = Settings().model_dump()
    tree["pools"]["schnell-fp8"] = {"model": "schnell", "precision": "fp8"}
    settings = Settings.model_validate(tree)
    assert plan(settings, model="schnell", go_fast=True).pool == "schnell-fp8"
    assert plan(settings, model="schnell").pool == "schnell"


def test_model_without_a_pool_is_rejected() -> None:
    tree = Settings().model_dump()
    del tree["pools"]["schnell"]
    errors = field_errors(Settings.model_validate(tree), model="schnell")
    assert set(errors) == {"model"}
    assert "schnell" in errors["model"]


@pytest.mark.parametrize("megapixels", SIZES)
@pytest.mark.parametrize("ratio", SIZES["1"])
def test_aspect_ratios_have_the_sizes_of_the_table(megapixels: str, ratio: str) -> None:
    assert plan(aspect_ratio=ratio, megapixels=megapixels).size == SIZES[megapixels][ratio]


@pytest.mark.parametrize(
    ("requested", "size"),
    [((256, 1440), (256, 1440)), ((263, 264), (256, 272)), ((1000, 1001), (1008, 1008)), ((1431, 1432), (1424, 1440))],
)
def test_custom_sizes_are_rounded_half_up_to_multiples_of_16(requested: Size, size: Size) -> None:
    assert plan(aspect_ratio="custom", width=requested[0], height=requested[1]).size == size


def test_custom_aspect_ratio_requires_width_and_height() -> None:
    assert set(field_errors(aspect_ratio="custom")) == {"width", "height"}
    assert set(field_errors(aspect_ratio="custom", width=512)) == {"height"}


@pytest.mark.parametrize(
    ("image_size", "size"),
    [
        ((500, 500), (496, 496)),
        ((504, 512), (512, 512)),
        ((1920, 1080), (1440, 816)),
        ((4032, 3024), (1440, 1088)),
        ((64, 64), (64, 64)),
        ((64, 512), (64, 512)),
        ((8000, 1000), (1440, 176)),
    ],
)
def test_input_image_size_is_capped_and_rounded(image_size: Size, size: Size) -> None:
    assert plan(image=IMAGE_URL, image_size=image_size).size == size
    assert plan(image=IMAGE_URL).with_image_size(image_size) == plan(image=IMAGE_URL, image_size=image_size)


@pytest.mark.parametrize("image_size", [(63, 64), (64, 63), (64, 513), (4000, 100)])
def test_input_image_that_is_too_small_or_too_long_is_rejected(image_size: Size) -> None:
    width, height = image_size
    with pytest.raises(InvalidInput) as caught:
        plan(image=IMAGE_URL).with_image_size(image_size)
    [error] = caught.value.field_errors
    assert error.field == "image"
    assert f"{width}x{height}" in error.message


def test_plan_has_no_size_until_the_input_image_is_fetched() -> None:
    assert plan(image=IMAGE_URL).size is None


def test_size_above_the_limit_of_the_pool_is_rejected() -> None:
    tree = Settings().model_dump()
    tree["pools"]["dev-bf16"]["max_megapixels"] = 0.3
    settings = Settings.model_validate(tree)
    assert plan(settings, megapixels="0.25").size == (512, 512)
    errors = field_errors(settings)
    assert set(errors) == {"aspect_ratio"}
    assert "1024x1024" in errors["aspect_ratio"]
    assert "0.3" in errors["aspect_ratio"]
    assert set(field_errors(settings, image=IMAGE_URL, image_size=(1024, 1024))) == {"image"}


def test_seeds_count_up_from_the_requested_seed_modulo_2_to_the_53() -> None:
    assert plan(seed=7, num_outputs=3).seeds == (7, 8, 9)
    assert plan(seed=2**53 - 1, num_outputs=2).seeds == (2**53 - 1, 0)
    assert plan(seed=2**64 + 5).seeds == (5,)
    assert plan(num_outputs=2).seeds == (RANDOM_SEED, RANDOM_SEED + 1)
    assert plan(seed=0).seeds == (0,)


@pytest.mark.parametrize("seed", [-1, "-1", -(2**70)])
def test_negative_seed_is_random(seed: int | str) -> None:
    assert plan(seed=seed, num_outputs=2).seeds == (RANDOM_SEED, RANDOM_SEED + 1)


def test_notes_name_a_seed_that_was_reduced() -> None:
    assert not plan(seed=2**53 - 1).notes
    assert [note for note in plan(seed=2**53).notes if note.startswith("seed") and "2^53" in note]


def test_mask_requires_an_image() -> None:
    assert set(field_errors(mask=IMAGE_URL)) == {"mask"}


def test_guidance_and_strength_are_none_where_they_have_no_effect() -> None:
    assert plan(guidance_scale=0).guidance == 0
    assert plan(model="schnell", guidance_scale=5).guidance is None
    assert plan(prompt_strength=0.5).strength is None
    assert plan(image=IMAGE_URL, prompt_strength=0.5).strength == 0.5


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        ({"width": 512}, "width", "custom"),
        ({"image": IMAGE_URL, "megapixels": "1"}, "megapixels", "with an image"),
        ({"image": IMAGE_URL, "aspect_ratio": "1:1"}, "aspect_ratio", "with an image"),
        ({"prompt_strength": 0.3}, "prompt_strength", "without an image"),
        ({"aspect_ratio": "custom", "width": 256, "height": 256, "megapixels": 1}, "megapixels", "custom"),
        ({"model": "schnell", "go_fast": True}, "go_fast", "schnell"),
        ({"model": "schnell", "guidance_scale": 2}, "guidance_scale", "schnell"),
        ({"output_format": "png", "output_quality": 90}, "output_quality", "png"),
        ({"lora_scale": 0.5}, "lora_scale", "without replicate_weights"),
        ({"extra_lora_scale": 0.5, "replicate_weights": "a/b"}, "extra_lora_scale", "without extra_lora"),
        ({"extra_lora_scale": 0.5, "extra_lora": " "}, "extra_lora_scale", "without extra_lora"),
        ({"lora_scale": 0, "replicate_weights": "a/b"}, "replicate_weights", "scale 0"),
        ({"extra_lora_scale": 0, "extra_lora": "a/b"}, "extra_lora", "scale 0"),
        ({"image": IMAGE_URL, "prompt_strength": 0}, "prompt ", "prompt_strength 0"),
        ({"image": IMAGE_URL, "mask": IMAGE_URL, "prompt_strength": 0}, "mask", "prompt_strength 0"),
        ({"image": IMAGE_URL, "prompt_strength": 1}, "image", "prompt_strength 1"),
    ],
)
def test_notes_name_inputs_without_effect(raw: dict[str, Any], field: str, reason: str) -> None:
    notes = [note for note in plan(**raw).notes if "no effect" in note]
    assert [note for note in notes if note.startswith(field) and reason in note]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"model": "schnell"}, ("schnell", "4 steps", "28")),
        ({"go_fast": True, "aspect_ratio": "custom", "width": 256, "height": 256}, ("go_fast", "custom", "bf16")),
    ],
)
def test_notes_contain_advice_and_the_reason_for_the_pool(raw: dict[str, Any], words: tuple[str, ...]) -> None:
    assert [note for note in plan(**raw).notes if all(word in note for word in words)]


@pytest.mark.parametrize(
    "raw",
    [
        {"seed": 1, "go_fast": False},
        {"output_format": "jpg", "output_quality": 90},
        {"replicate_weights": "a/b", "lora_scale": 0.5},
        {"image": IMAGE_URL, "prompt_strength": 0.9},
        {"image": IMAGE_URL, "mask": IMAGE_URL, "prompt_strength": 1},
    ],
)
def test_request_whose_inputs_all_have_an_effect_has_no_notes(raw: dict[str, Any]) -> None:
    assert plan(**raw).notes == ()


def test_safety_check_can_be_disabled_only_if_the_settings_allow_it() -> None:
    strict = Settings.model_validate({"safety": {"allow_disabling": False}})
    assert plan().check_safety
    assert not plan(disable_safety_checker=True).check_safety
    assert plan(strict, disable_safety_checker=True).check_safety
    assert any("disable_safety_checker" in note for note in plan(strict, disable_safety_checker=True).notes)


def test_plan_is_unchanged_by_a_json_round_trip() -> None:
    original = plan(image=IMAGE_URL, mask=IMAGE_URL, image_size=(640, 480), num_outputs=4)
    assert GenerationPlan.model_validate_json(original.model_dump_json()) == original


def test_plan_has_loras_with_the_scale_factor_of_its_pool() -> None:
    planned = plan(replicate_weights="a/b", go_fast=True)
    assert (planned.pool, planned.loras) == ("dev-fp8", (PlannedLora(reference_key="a/b", scale=1.5),))
    assert [note for note in planned.notes if "LoRA" in note and "1.5" in note and "fp8" in note]


def scales_and_notes(
    pool: str = "dev-bf16", settings: Settings | None = None, **raw: Any
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The scales of the planned LoRAs by reference key, and the notes about them."""
    inputs = validate(**raw)
    loras, notes = plan_loras(inputs, settings or Settings(), pool, reference_keys(inputs))
    return {lora.reference_key: lora.scale for lora in loras}, notes


@pytest.mark.parametrize(
    ("raw", "scales"),
    [
        pytest.param({}, {}, id="none"),
        pytest.param({"replicate_weights": " a/b ", "extra_lora": " "}, {"a/b": 1.0}, id="blank extra_lora"),
        pytest.param({"replicate_weights": "a/b", "lora_scale": -0.5}, {"a/b": -0.5}, id="negative scale"),
        pytest.param({"extra_lora": "c/d", "extra_lora_scale": 2, "lora_scale": 3}, {"c/d": 2.0}, id="only extra_lora"),
        pytest.param(
            {"replicate_weights": "a/b", "lora_scale": 0, "extra_lora": "c/d", "extra_lora_scale": 0.8},
            {"a/b": 0.0, "c/d": 0.8},
            id="two LoRAs",
        ),
    ],
)
def test_lora_scales_are_as_requested_and_multiplied_in_fp8(raw: dict[str, Any], scales: dict[str, float]) -> None:
    assert scales_and_notes(**raw) == (scales, ())
    fp8_scales, fp8_notes = scales_and_notes("dev-fp8", **raw)
    assert fp8_scales == {key: 1.5 * scale for key, scale in scales.items()}
    assert len(fp8_notes) == (1 if scales else 0)
    assert all("1.5" in note for note in fp8_notes)
    assert scales_and_notes("dev-fp8", Settings(fp8_lora_factor=1), **raw) == (scales, ())


def test_lora_given_twice_is_planned_twice() -> None:
    inputs = validate(replicate_weights="a/b", extra_lora="a/b")
    loras, _ = plan_loras(inputs, Settings(), "dev-bf16", reference_keys(inputs))
    assert [lora.reference_key for lora in loras] == ["a/b", "a/b"]


def test_with_weights_adds_the_weights_key_of_each_lora() -> None:
    loras = (PlannedLora(reference_key="a/b", scale=0.5), PlannedLora(reference_key="c/d", scale=1.0))
    planned = plan().model_copy(update={"loras": loras})
    completed = planned.with_weights({"a/b": "sha256:1", "c/d": "sha256:2"})
    assert [lora.weights_key for lora in completed.loras] == ["sha256:1", "sha256:2"]
    assert [lora.reference_key for lora in completed.loras] == ["a/b", "c/d"]
    assert GenerationPlan.model_validate_json(completed.model_dump_json()) == completed
