"""Plans a prediction: pool, size, seeds, scales and safety check. Pure: equal inputs and seeds give equal plans."""

from collections.abc import Collection, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict

from serve.errors import FieldError, InvalidInput
from serve.inputs import Inputs
from serve.model_specs import MODEL_SPECS, ImageFormat, Size
from serve.output_sizes import IMAGE_RATIO_MAX, IMAGE_SIDE_MAX, IMAGE_SIDE_MIN, SIZES, nearest_multiple
from serve.settings import Settings

SEED_COUNT = 2**53
"""Clients in JavaScript cannot hold larger integers, so a seed that they read would give another image."""

LORA_SCALE_FIELDS = {"replicate_weights": "lora_scale", "extra_lora": "extra_lora_scale"}
"""Input that names a LoRA -> input with its scale."""


class PlannedLora(BaseModel):
    """One LoRA of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference_key: str
    """Key of the LoRA's `Reference`."""
    scale: float
    """As the engine applies it; may be negative."""
    weights_key: str | None = None
    """Key of the weights that the reference was resolved to; None until then."""


class GenerationPlan(BaseModel):
    """Everything that is decided for one prediction. JSON-serializable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: str
    prompt: str
    size: Size | None
    """Size of the output; None until the size of a fetched input image is known."""
    steps: int
    guidance: float | None
    """None for variants without a guidance embedding."""
    strength: float | None
    """Share of the schedule that runs over the input image; None without one."""
    seeds: tuple[int, ...]
    """One per image."""
    output_format: ImageFormat
    output_quality: int
    check_safety: bool
    max_megapixels: float
    previews: int = 0
    """Of each unfinished image, at most."""
    loras: tuple[PlannedLora, ...] = ()
    """A LoRA may be listed twice: `LoraManager` adds its scales."""
    notes: tuple[str, ...] = ()
    """Log lines for the caller: inputs without effect, and why a pool was chosen."""

    def with_image_size(self, size: Size) -> Self:
        """The plan with its output size, computed from the size of the input image after its EXIF rotation.

        Raises `InvalidInput` naming `image` if the image is too small or its sides differ too much.
        """
        return self.model_copy(
            update={"size": _check_megapixels(input_image_size(size), self.max_megapixels, ("image",))}
        )

    def with_weights(self, weights_keys: Mapping[str, str]) -> Self:
        """The plan with the weights of its LoRAs, given by reference key."""
        loras = tuple(lora.model_copy(update={"weights_key": weights_keys[lora.reference_key]}) for lora in self.loras)
        return self.model_copy(update={"loras": loras})


def input_image_size(size: Size) -> Size:
    """The size at which an input image is processed: capped, each side rounded to its nearest multiple.

    Raises `InvalidInput` naming `image`.
    """
    width, height = size
    if min(size) < IMAGE_SIDE_MIN:
        raise _invalid_image(f"the image is {width}x{height}; each side needs at least {IMAGE_SIDE_MIN} pixels")
    if max(size) > IMAGE_RATIO_MAX * min(size):
        raise _invalid_image(
            f"the image is {width}x{height}; the longer side may be at most {IMAGE_RATIO_MAX:g} times the shorter one"
        )
    scale = min(1.0, IMAGE_SIDE_MAX / max(size))
    return nearest_multiple(width * scale), nearest_multiple(height * scale)


def make_plan(
    inputs: Inputs,
    settings: Settings,
    random_seed: int,
    reference_keys: Mapping[str, str] | None = None,
    image_size: Size | None = None,
) -> GenerationPlan:
    """The plan for validated inputs.

    `random_seed` is used if the inputs have none, or a negative one. `reference_keys` has the keys of the LoRA
    references by input (`replicate_weights`, `extra_lora`). `image_size` is the size of the input image, if it is
    already known. Raises `InvalidInput`.
    """
    _check_combination(inputs)
    pool, pool_notes = _choose_pool(inputs, settings)
    max_megapixels = settings.pools[pool].max_megapixels
    seed = random_seed if inputs.seed is None or inputs.seed < 0 else inputs.seed
    loras_by_field = reference_keys or {}
    loras, lora_notes = plan_loras(inputs, settings, pool, loras_by_field)
    plan = GenerationPlan(
        pool=pool,
        prompt=inputs.prompt,
        size=None
        if inputs.image is not None
        else _check_megapixels(_requested_size(inputs), max_megapixels, _size_fields(inputs)),
        steps=inputs.num_inference_steps,
        guidance=inputs.guidance_scale if MODEL_SPECS[inputs.model].guidance_embeds else None,
        strength=inputs.prompt_strength if inputs.image is not None else None,
        seeds=tuple((seed + index) % SEED_COUNT for index in range(inputs.num_outputs)),
        output_format=inputs.output_format,
        output_quality=inputs.output_quality,
        check_safety=not (inputs.disable_safety_checker and settings.safety.allow_disabling),
        max_megapixels=max_megapixels,
        loras=loras,
        notes=(*pool_notes, *lora_notes, *_inputs_without_effect(inputs, loras_by_field), *_advice(inputs, settings)),
    )
    return plan if inputs.image is None or image_size is None else plan.with_image_size(image_size)


def plan_loras(
    inputs: Inputs, settings: Settings, pool: str, reference_keys: Mapping[str, str]
) -> tuple[tuple[PlannedLora, ...], tuple[str, ...]]:
    """The LoRAs in `reference_keys` at the scales that `pool` applies, and notes about them."""
    factor = settings.fp8_lora_factor if settings.pools[pool].precision == "fp8" else 1.0
    loras = tuple(
        PlannedLora(reference_key=reference_keys[field], scale=factor * getattr(inputs, scale_field))
        for field, scale_field in LORA_SCALE_FIELDS.items()
        if field in reference_keys
    )
    notes = (f"LoRA scales are multiplied by {factor:g} in fp8",) if loras and factor != 1 else ()
    return loras, notes


def _check_combination(inputs: Inputs) -> None:
    errors = []
    if inputs.mask is not None and inputs.image is None:
        errors.append(FieldError("mask", "a mask needs an image"))
    if inputs.aspect_ratio == "custom" and inputs.image is None:
        errors += [
            FieldError(side, "is required when aspect_ratio is custom")
            for side in ("width", "height")
            if getattr(inputs, side) is None
        ]
    if errors:
        raise InvalidInput(tuple(errors))


def _choose_pool(inputs: Inputs, settings: Settings) -> tuple[str, tuple[str, ...]]:
    """The pool with the requested model and precision, or with another precision if that one is not served."""
    pools = {name: pool.precision for name, pool in settings.pools.items() if settings.variant_of(name) == inputs.model}
    if not pools:
        raise InvalidInput((FieldError("model", f"{inputs.model} is not served here"),))
    fp8 = [name for name, precision in pools.items() if precision == "fp8"]
    others = [name for name, precision in pools.items() if precision != "fp8"]
    if inputs.go_fast and not fp8:
        return others[0], (f"go_fast has no effect with {inputs.model}",)
    if inputs.go_fast and inputs.aspect_ratio == "custom" and others and not settings.custom_sizes_in_fp8:
        return others[0], ("go_fast has no effect with aspect_ratio custom, which runs in bf16",)
    if inputs.go_fast or not others:
        return fp8[0], () if inputs.go_fast else (f"{inputs.model} is served in fp8 only",)
    return others[0], ()


def _requested_size(inputs: Inputs) -> Size:
    if inputs.width is not None and inputs.height is not None and inputs.aspect_ratio == "custom":
        return nearest_multiple(inputs.width), nearest_multiple(inputs.height)
    return SIZES[inputs.megapixels][inputs.aspect_ratio]


def _size_fields(inputs: Inputs) -> tuple[str, ...]:
    return ("width", "height") if inputs.aspect_ratio == "custom" else ("aspect_ratio",)


def _check_megapixels(size: Size, max_megapixels: float, fields: tuple[str, ...]) -> Size:
    width, height = size
    if width * height > max_megapixels * 1e6:
        why = f"{width}x{height} is {width * height / 1e6:.2f} megapixels; the limit is {max_megapixels:g}"
        raise InvalidInput(tuple(FieldError(field, why) for field in fields))
    return size


def _inputs_without_effect(inputs: Inputs, loras: Collection[str]) -> tuple[str, ...]:
    """A line for each given input that has no effect in combination with the others.

    `loras` are the inputs that name a LoRA.
    """
    given = inputs.model_fields_set
    custom = inputs.aspect_ratio == "custom"
    guidance_embeds = MODEL_SPECS[inputs.model].guidance_embeds
    strength = None if inputs.image is None else inputs.prompt_strength
    scales = {field: getattr(inputs, scale_field) for field, scale_field in LORA_SCALE_FIELDS.items()}
    rules = (
        (inputs.image is not None, ("aspect_ratio", "width", "height", "megapixels"), "with an image"),
        (inputs.image is None and not custom, ("width", "height"), "unless aspect_ratio is custom"),
        (inputs.image is None and custom, ("megapixels",), "with aspect_ratio custom"),
        (inputs.image is None, ("prompt_strength",), "without an image"),
        (strength == 0, ("prompt", "mask", "num_inference_steps"), "with prompt_strength 0"),
        (strength == 1 and inputs.mask is None, ("image",), "with prompt_strength 1, except for its size"),
        (not guidance_embeds, ("guidance_scale",), f"with {inputs.model}"),
        (inputs.output_format == "png", ("output_quality",), "with output_format png"),
        *((field not in loras, (scale,), f"without {field}") for field, scale in LORA_SCALE_FIELDS.items()),
        *((field in loras and scale == 0, (field,), "at scale 0") for field, scale in scales.items()),
    )
    return tuple(
        f"{field} has no effect {when}"
        for applies, fields, when in rules
        if applies
        for field in fields
        if field in given
    )


def _advice(inputs: Inputs, settings: Settings) -> tuple[str, ...]:
    lines = []
    recommended = MODEL_SPECS[inputs.model].recommended_steps
    if inputs.model == "schnell" and inputs.num_inference_steps > recommended:
        lines.append(f"schnell needs only {recommended} steps; {inputs.num_inference_steps} were requested")
    if inputs.seed is not None and inputs.seed >= SEED_COUNT:
        lines.append("seed is over 2^53 - 1, and is used modulo 2^53")
    if inputs.disable_safety_checker and not settings.safety.allow_disabling:
        lines.append("disable_safety_checker has no effect: the operator does not allow it")
    return tuple(lines)


def _invalid_image(why: str) -> InvalidInput:
    return InvalidInput((FieldError("image", why),))
