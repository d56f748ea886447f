"""What is decided for a request: the pool, the size, the seeds, the mode, and what the caller is told about it."""

import re
from typing import Any

import pytest

from serve.errors import InvalidInput
from serve.generation_plan import LORA_SCALE_FIELDS, GenerationPlan, PlannedLora, make_plan, plan_loras
from serve.inputs import SIZES, Inputs, validate_inputs
from serve.model_specs import Size
from serve.settings import Settings

PICTURE = "https://example.com/a.png"
RANDOM_SEED = 1234


def plan(settings: Settings | None = None, picture: Size | None = None, **raw: Any) -> GenerationPlan:
    inputs, _ = validate_inputs({"prompt": "a boat", **raw}, 10_000)
    return make_plan(inputs, settings or Settings(), RANDOM_SEED, _keys(inputs), picture)


def _keys(inputs: Inputs) -> dict[str, str]:
    """The texts of the LoRA inputs stand for the keys of their references."""
    texts = {field: (getattr(inputs, field) or "").strip() for field in LORA_SCALE_FIELDS}
    return {field: text for field, text in texts.items() if text}


def faults(**raw: Any) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        plan(**raw)
    return {fault.field: fault.message for fault in caught.value.field_errors}


@pytest.mark.parametrize(
    ("raw", "pool"),
    [
        ({}, "dev-bf16"),
        ({"go_fast": True}, "dev-fp8"),
        ({"model": "schnell"}, "schnell"),
        ({"model": "schnell", "go_fast": True}, "schnell"),
        ({"go_fast": True, "image": PICTURE}, "dev-fp8"),
        ({"go_fast": True, "image": PICTURE, "mask": PICTURE}, "dev-fp8"),
        ({"go_fast": True, "aspect_ratio": "custom", "width": 512, "height": 512}, "dev-bf16"),
        ({"go_fast": True, "aspect_ratio": "custom", "image": PICTURE}, "dev-bf16"),
        ({"aspect_ratio": "custom", "width": 512, "height": 512}, "dev-bf16"),
    ],
)
def test_the_pool_follows_from_model_go_fast_and_custom(raw: dict[str, Any], pool: str) -> None:
    assert plan(**raw).pool == pool


def test_a_setting_lets_custom_sizes_run_in_fp8() -> None:
    custom: dict[str, Any] = {"go_fast": True, "aspect_ratio": "custom", "width": 512, "height": 512}
    assert plan(Settings(custom_sizes_in_fp8=True), **custom).pool == "dev-fp8"


def test_an_operator_adds_a_pool_without_code() -> None:
    tree = Settings().model_dump()
    tree["pools"]["schnell-fp8"] = {"model": "schnell", "precision": "fp8"}
    settings = Settings.model_validate(tree)
    assert plan(settings, model="schnell", go_fast=True).pool == "schnell-fp8"
    assert plan(settings, model="schnell").pool == "schnell"


def test_a_model_that_no_pool_serves_is_refused_by_name() -> None:
    tree = Settings().model_dump()
    del tree["pools"]["schnell"]
    with pytest.raises(InvalidInput, match="model: schnell is not served here"):
        plan(Settings.model_validate(tree), model="schnell")


@pytest.mark.parametrize("megapixels", SIZES)
@pytest.mark.parametrize("ratio", SIZES["1"])
def test_ratios_have_the_sizes_of_the_table(megapixels: str, ratio: str) -> None:
    assert plan(aspect_ratio=ratio, megapixels=megapixels).size == SIZES[megapixels][ratio]


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [((256, 1440), (256, 1440)), ((263, 264), (256, 272)), ((1000, 1001), (1008, 1008)), ((1431, 1432), (1424, 1440))],
)
def test_custom_sizes_are_rounded_to_the_nearest_16_half_up(asked: Size, drawn: Size) -> None:
    assert plan(aspect_ratio="custom", width=asked[0], height=asked[1]).size == drawn


def test_custom_without_its_sides_names_the_missing_ones() -> None:
    assert set(faults(aspect_ratio="custom")) == {"width", "height"}
    assert set(faults(aspect_ratio="custom", width=512)) == {"height"}


@pytest.mark.parametrize(
    ("picture", "size"),
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
def test_pictures_are_capped_and_rounded(picture: Size, size: Size) -> None:
    assert plan(image=PICTURE, picture=picture).size == size
    assert plan(image=PICTURE).with_image_size(picture) == plan(image=PICTURE, picture=picture)


@pytest.mark.parametrize("picture", [(63, 64), (64, 63), (64, 513), (4000, 100)])
def test_pictures_too_small_or_too_long_are_refused(picture: Size) -> None:
    with pytest.raises(InvalidInput, match="image: the image is"):
        plan(image=PICTURE).with_image_size(picture)


def test_the_size_waits_for_a_picture_that_is_not_fetched_yet() -> None:
    waiting = plan(image=PICTURE)
    assert waiting.size is None


def test_a_pool_refuses_more_pixels_than_it_draws() -> None:
    tree = Settings().model_dump()
    tree["pools"]["dev-bf16"]["max_megapixels"] = 0.3
    small = Settings.model_validate(tree)
    assert plan(small, megapixels="0.25").size == (512, 512)
    with pytest.raises(InvalidInput, match=re.escape("aspect_ratio: 1024x1024")):
        plan(small)
    with pytest.raises(InvalidInput, match="image: "):
        plan(small, image=PICTURE, picture=(1024, 1024))


def test_seeds_count_up_from_the_asked_one_modulo_the_seed_space() -> None:
    assert plan(seed=7, num_outputs=3).seeds == (7, 8, 9)
    assert plan(seed=-1, num_outputs=2).seeds == (2**64 - 1, 0)
    assert plan(num_outputs=2).seeds == (RANDOM_SEED, RANDOM_SEED + 1)
    assert plan(seed=0).seeds == (0,)


def test_a_mask_needs_an_image() -> None:
    assert set(faults(mask=PICTURE)) == {"mask"}


def test_guidance_and_strength_exist_only_where_they_act() -> None:
    assert plan(guidance_scale=0).guidance == 0
    assert plan(model="schnell", guidance_scale=5).guidance is None
    assert plan(prompt_strength=0.5).strength is None
    assert plan(image=PICTURE, prompt_strength=0.5).strength == 0.5


@pytest.mark.parametrize(
    ("raw", "note"),
    [
        ({"width": 512}, "width has no effect unless"),
        ({"image": PICTURE, "megapixels": "1"}, "megapixels has no effect with an image"),
        ({"image": PICTURE, "aspect_ratio": "1:1"}, "aspect_ratio has no effect with an image"),
        ({"prompt_strength": 0.3}, "prompt_strength has no effect without an image"),
        ({"aspect_ratio": "custom", "width": 256, "height": 256, "megapixels": 1}, "megapixels has no effect with asp"),
        ({"model": "schnell", "go_fast": True}, "go_fast has no effect with schnell"),
        ({"model": "schnell", "guidance_scale": 2}, "guidance_scale has no effect with schnell"),
        ({"model": "schnell"}, "schnell needs only 4 steps"),
        ({"go_fast": True, "aspect_ratio": "custom", "width": 256, "height": 256}, "this runs in bf16"),
    ],
)
def test_what_has_no_effect_is_said(raw: dict[str, Any], note: str) -> None:
    assert any(note in line for line in plan(**raw).notes)


def test_a_plain_request_has_nothing_to_say() -> None:
    assert plan(seed=1, go_fast=False).notes == ()


def test_the_safety_check_can_be_disabled_unless_the_operator_forbids_it() -> None:
    strict = Settings.model_validate({"safety": {"allow_disabling": False}})
    assert plan().check_safety
    assert not plan(disable_safety_checker=True).check_safety
    assert plan(strict, disable_safety_checker=True).check_safety
    assert any("does not allow" in note for note in plan(strict, disable_safety_checker=True).notes)


def test_a_plan_survives_json() -> None:
    made = plan(image=PICTURE, mask=PICTURE, picture=(640, 480), num_outputs=4)
    assert GenerationPlan.model_validate_json(made.model_dump_json()) == made


def test_the_plan_has_the_loras_at_the_scales_of_its_pool() -> None:
    made = plan(replicate_weights="a/b", go_fast=True)
    assert (made.pool, made.loras) == ("dev-fp8", (PlannedLora(reference_key="a/b", scale=1.5),))
    assert "LoRA scales are multiplied by 1.5 in fp8" in made.notes


def _uses(pool: str = "dev-bf16", settings: Settings | None = None, **raw: Any) -> tuple[dict[str, float], list[str]]:
    """Scales by what the caller wrote, and notes."""
    inputs, _ = validate_inputs({"prompt": "a boat", **raw}, 10_000)
    uses, notes = plan_loras(inputs, settings or Settings(), pool, _keys(inputs))
    return {use.reference_key: use.scale for use in uses}, list(notes)


@pytest.mark.parametrize(
    ("raw", "scales"),
    [
        pytest.param({}, {}, id="none"),
        pytest.param({"replicate_weights": " a/b ", "extra_lora": " "}, {"a/b": 1.0}, id="spaces are no part of it"),
        pytest.param({"replicate_weights": "a/b", "lora_scale": -0.5}, {"a/b": -0.5}, id="negative, and applied once"),
        pytest.param({"extra_lora": "c/d", "extra_lora_scale": 2, "lora_scale": 3}, {"c/d": 2.0}, id="extra alone"),
        pytest.param(
            {"replicate_weights": "a/b", "lora_scale": 0, "extra_lora": "c/d", "extra_lora_scale": 0.8},
            {"a/b": 0.0, "c/d": 0.8},
            id="each has its own",
        ),
    ],
)
def test_loras_have_the_scales_that_were_asked_for_and_more_in_fp8(
    raw: dict[str, Any], scales: dict[str, float]
) -> None:
    assert _uses(**raw) == (scales, [])
    increased = {key: 1.5 * scale for key, scale in scales.items()}
    assert _uses("dev-fp8", **raw) == (increased, ["LoRA scales are multiplied by 1.5 in fp8"] if scales else [])
    assert _uses("dev-fp8", Settings(fp8_lora_factor=1), **raw) == (scales, [])


def test_the_same_lora_twice_is_used_twice() -> None:
    inputs, _ = validate_inputs({"prompt": "a boat", "replicate_weights": "a/b", "extra_lora": "a/b"}, 10_000)
    uses, _ = plan_loras(inputs, Settings(), "dev-bf16", _keys(inputs))
    assert [use.reference_key for use in uses] == ["a/b", "a/b"]


def test_with_weights_adds_the_weights_key_of_each_lora() -> None:
    loras = (PlannedLora(reference_key="a/b", scale=0.5), PlannedLora(reference_key="c/d", scale=1.0))
    planned = plan().model_copy(update={"loras": loras})
    completed = planned.with_weights({"a/b": "sha256:1", "c/d": "sha256:2"})
    assert [lora.weights_key for lora in completed.loras] == ["sha256:1", "sha256:2"]
    assert [lora.reference_key for lora in completed.loras] == ["a/b", "c/d"]
    assert GenerationPlan.model_validate_json(completed.model_dump_json()) == completed
