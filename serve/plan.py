"""Turns what was asked into what will be done. Pure: the same inputs and seed give the same plan.

Knows the table of pools, not who runs them; no Ray, no torch, no HTTP, no pixels. What a plan decides is never decided
again further down.
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from serve.errors import FieldError, InvalidInput
from serve.inputs import Inputs
from serve.model_specs import (
    IMAGE_RATIO_MAX,
    IMAGE_SIDE_MAX,
    IMAGE_SIDE_MIN,
    MODEL_SPECS,
    SIZES,
    Size,
    nearest_multiple,
)
from serve.settings import Settings

SEED_SPACE = 2**64

Mode = Literal["text_to_image", "image_to_image", "inpainting"]


class PlannedLora(BaseModel):
    """One LoRA, and how strongly it acts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """What the caller wrote, then the key of the reference that it is read as, and at last that of the weights."""
    scale: float
    """As it is applied, once and linearly; may be negative."""


class Plan(BaseModel):
    """What will be done for one prediction. JSON-serialisable; `version` changes when its meaning does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    pool: str
    mode: Mode
    prompt: str
    size: Size | None
    """Width and height of the answer in pixels; None until the size of a fetched input picture is known."""
    steps: int
    guidance: float | None
    """None for variants without a guidance embedding."""
    strength: float | None
    """Share of the schedule that is run over an input picture; None without one."""
    seeds: tuple[int, ...]
    """One an image."""
    output_format: Literal["webp", "jpg", "png"]
    output_quality: int
    check_safety: bool
    max_megapixels: float
    loras: tuple[PlannedLora, ...] = ()
    """The same one twice adds up."""
    notes: tuple[str, ...] = ()
    """What the caller should know: inputs that had no effect, and where it ran. One log line each."""

    def with_image_size(self, size: Size) -> Self:
        """The plan completed by the size of the input picture, orientation applied.

        Raises `InvalidInput` naming `image` for a picture that is too small or too long.
        """
        return self.model_copy(update={"size": _check_area(input_image_size(size), self.max_megapixels, ("image",))})

    def with_lora_keys(self, keys: Mapping[str, str]) -> Self:
        """The plan with each LoRA named anew; `keys` has the new names by the present ones."""
        loras = tuple(use.model_copy(update={"key": keys[use.key]}) for use in self.loras)
        return self.model_copy(update={"loras": loras})


def input_image_size(size: Size) -> Size:
    """The size at which an input picture is worked on: capped, then each side to its nearest multiple."""
    width, height = size
    if min(size) < IMAGE_SIDE_MIN:
        raise _refusal(f"the picture is {width}x{height}; each side needs at least {IMAGE_SIDE_MIN} pixels")
    if max(size) > IMAGE_RATIO_MAX * min(size):
        raise _refusal(f"the picture is {width}x{height}; no side may be over {IMAGE_RATIO_MAX:g} times the other")
    scale = min(1.0, IMAGE_SIDE_MAX / max(size))
    return nearest_multiple(width * scale), nearest_multiple(height * scale)


def make_plan(inputs: Inputs, settings: Settings, random_seed: int, picture: Size | None = None) -> Plan:
    """The plan for validated inputs.

    `random_seed` is used where the inputs name none. `picture` is the size of the input picture when it is known
    already. Raises `InvalidInput`.
    """
    _check_combination(inputs)
    pool, route_notes = _route(inputs, settings)
    guided = MODEL_SPECS[inputs.model].guidance_embeds
    max_megapixels = settings.pools[pool].max_megapixels
    seed = random_seed if inputs.seed is None else inputs.seed
    loras, lora_notes = lora_uses(inputs, settings, pool)
    plan = Plan(
        pool=pool,
        mode=_mode(inputs),
        prompt=inputs.prompt,
        size=None if inputs.image else _check_area(_asked_size(inputs), max_megapixels, _sides(inputs)),
        steps=inputs.num_inference_steps,
        guidance=inputs.guidance_scale if guided else None,
        strength=inputs.prompt_strength if inputs.image else None,
        seeds=tuple((seed + index) % SEED_SPACE for index in range(inputs.num_outputs)),
        output_format=inputs.output_format,
        output_quality=inputs.output_quality,
        check_safety=not (inputs.disable_safety_checker and settings.safety.allow_disabling),
        max_megapixels=max_megapixels,
        loras=loras,
        notes=(*route_notes, *lora_notes, *_ignored(inputs), *_advice(inputs, settings)),
    )
    return plan.with_image_size(picture) if inputs.image and picture else plan


def lora_uses(inputs: Inputs, settings: Settings, pool: str) -> tuple[tuple[PlannedLora, ...], tuple[str, ...]]:
    """The LoRAs of the inputs, by what the caller wrote, at the scales that `pool` applies; and notes on them."""
    asked = ((inputs.replicate_weights, inputs.lora_scale), (inputs.extra_lora, inputs.extra_lora_scale))
    factor = settings.fp8_lora_factor if settings.pools[pool].precision == "fp8" else 1.0
    uses = tuple(
        PlannedLora(key=text.strip(), scale=factor * scale)
        for text, scale in asked
        if text is not None and text.strip()
    )
    notes = (f"LoRA scales are multiplied by {factor:g} in fp8",) if uses and factor != 1 else ()
    return uses, notes


def _check_combination(inputs: Inputs) -> None:
    faults = []
    if inputs.mask and not inputs.image:
        faults.append(FieldError("mask", "a mask needs an image"))
    if inputs.aspect_ratio == "custom" and not inputs.image:
        faults += [
            FieldError(side, "is needed when aspect_ratio is custom")
            for side in ("width", "height")
            if getattr(inputs, side) is None
        ]
    if faults:
        raise InvalidInput(tuple(faults))


def _route(inputs: Inputs, settings: Settings) -> tuple[str, tuple[str, ...]]:
    """The pool for the inputs: the asked precision where the variant has it, else what the variant has."""
    rows = {name: pool.precision for name, pool in settings.pools.items() if settings.variant_of(name) == inputs.model}
    if not rows:
        raise InvalidInput((FieldError("model", f"{inputs.model} is not served here"),))
    fast = [name for name, precision in rows.items() if precision == "fp8"]
    full = [name for name, precision in rows.items() if precision != "fp8"]
    if inputs.go_fast and not fast:
        return full[0], (f"go_fast has no effect with {inputs.model}",)
    if inputs.go_fast and inputs.aspect_ratio == "custom" and full and not settings.custom_sizes_in_fp8:
        return full[0], ("custom aspect ratios are not drawn in fp8; this runs in bf16",)
    if inputs.go_fast or not full:
        return fast[0], () if inputs.go_fast else (f"{inputs.model} is served in fp8 only",)
    return full[0], ()


def _mode(inputs: Inputs) -> Mode:
    if inputs.image is None:
        return "text_to_image"
    return "image_to_image" if inputs.mask is None else "inpainting"


def _asked_size(inputs: Inputs) -> Size:
    if inputs.aspect_ratio == "custom":
        return nearest_multiple(inputs.width or 0), nearest_multiple(inputs.height or 0)
    return SIZES[inputs.megapixels][inputs.aspect_ratio]


def _sides(inputs: Inputs) -> tuple[str, ...]:
    return ("width", "height") if inputs.aspect_ratio == "custom" else ("aspect_ratio",)


def _check_area(size: Size, max_megapixels: float, fields: tuple[str, ...]) -> Size:
    width, height = size
    if width * height > max_megapixels * 1e6:
        why = f"{width}x{height} pixels are more than the {max_megapixels:g} megapixels drawn here"
        raise InvalidInput(tuple(FieldError(field, why) for field in fields))
    return size


def _ignored(inputs: Inputs) -> tuple[str, ...]:
    """A line for each given input that has no effect beside the others."""
    given = inputs.model_fields_set
    custom = inputs.aspect_ratio == "custom"
    rules = (
        (inputs.image is not None, ("aspect_ratio", "width", "height", "megapixels"), "with an image"),
        (inputs.image is None and not custom, ("width", "height"), "unless aspect_ratio is custom"),
        (inputs.image is None and custom, ("megapixels",), "with aspect_ratio custom"),
        (inputs.image is None, ("prompt_strength",), "without an image"),
        (not MODEL_SPECS[inputs.model].guidance_embeds, ("guidance_scale",), f"with {inputs.model}"),
    )
    return tuple(
        f"{field} has no effect {why}" for holds, fields, why in rules if holds for field in fields if field in given
    )


def _advice(inputs: Inputs, settings: Settings) -> tuple[str, ...]:
    lines = []
    enough = MODEL_SPECS[inputs.model].recommended_steps
    if inputs.model == "schnell" and inputs.num_inference_steps > enough:
        lines.append(f"schnell needs only {enough} steps; {inputs.num_inference_steps} were asked for")
    if inputs.disable_safety_checker and not settings.safety.allow_disabling:
        lines.append("disable_safety_checker has no effect: the operator forbids it")
    return tuple(lines)


def _refusal(why: str) -> InvalidInput:
    return InvalidInput((FieldError("image", why),))
