"""The 21 inputs of a prediction: types, bounds, defaults and error messages.

As in Replicate's API, numbers may be strings, booleans may be "true", `null` means absent, and unknown keys are ignored
and reported. Any other invalid value is an error; all errors are reported together.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from serve.errors import FieldError, InvalidInput
from serve.model_specs import ImageFormat
from serve.output_sizes import CUSTOM_SIDE_MAX, CUSTOM_SIDE_MIN

MAX_NAME_CHARS = 64

AspectRatio = Literal["1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21", "custom"]


def _reject_boolean(value: object) -> object:
    """In Python a boolean is an integer; in JSON it is not."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not a boolean")
    return value


def _number_to_text(value: object) -> object:
    """`megapixels` is a string in the schema, but callers write a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # An integer of hundreds of digits is no float.
            return f"{value:g}"
    return value


def _reject_lone_surrogates(value: str) -> str:
    """JSON can contain half of a surrogate pair, which cannot be encoded as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("Input should be valid Unicode text") from None
    return value


UnicodeText = Annotated[str, AfterValidator(_reject_lone_surrogates)]
Integer = Annotated[int, BeforeValidator(_reject_boolean)]
Number = Annotated[float, BeforeValidator(_reject_boolean), Field(allow_inf_nan=False)]
Side = Annotated[Integer, Field(ge=CUSTOM_SIDE_MIN, le=CUSTOM_SIDE_MAX)]
Scale = Annotated[Number, Field(ge=-1, le=3)]
ImageUri = Annotated[str, Field(pattern=r"^(?i:https?://|data:).+", json_schema_extra={"format": "uri"})]


class Inputs(BaseModel):
    """Validated inputs, in the order of the API's schema."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: UnicodeText = Field(description="What the image should show.")
    image: ImageUri | None = Field(
        default=None, description="Image to start from. With one, aspect_ratio, width and height are ignored."
    )
    mask: ImageUri | None = Field(
        default=None, description="Where to repaint `image`: white is repainted, black pixels are kept unchanged."
    )
    aspect_ratio: AspectRatio = Field(
        default="1:1", description="Shape of the image. `custom` takes width and height, and runs in bf16."
    )
    height: Side | None = Field(
        default=None, description="Height with aspect_ratio=custom, rounded to the nearest multiple of 16."
    )
    width: Side | None = Field(
        default=None, description="Width with aspect_ratio=custom, rounded to the nearest multiple of 16."
    )
    prompt_strength: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.8, description="How much of `image` is replaced: 0 keeps it, 1 ignores it."
    )
    model: Literal["dev", "schnell"] = Field(
        default="dev", description="`dev` is at its best around 28 steps, `schnell` needs 4."
    )
    num_outputs: Annotated[Integer, Field(ge=1, le=4)] = Field(default=1, description="Number of images.")
    num_inference_steps: Annotated[Integer, Field(ge=1, le=50)] = Field(default=28, description="Denoising steps.")
    guidance_scale: Annotated[Number, Field(ge=0, le=10)] = Field(
        default=3.0, description="How closely `dev` follows the prompt; lower looks more natural."
    )
    seed: Integer | None = Field(
        default=None, description="Image i is generated with `seed + i`. Random if not given or negative."
    )
    output_format: ImageFormat = Field(default="webp", description="File format of the images.")
    output_quality: Annotated[Integer, Field(ge=0, le=100)] = Field(
        default=80, description="Quality of webp and jpg files, 100 is best. Ignored for png."
    )
    disable_safety_checker: bool = Field(default=False, description="Do not check the images.")
    go_fast: bool = Field(default=False, description="Generate with float8 weights instead of bf16.")
    megapixels: Annotated[Literal["1", "0.25"], BeforeValidator(_number_to_text)] = Field(
        default="1", description="Approximate size of the image."
    )
    replicate_weights: UnicodeText | None = Field(default=None, description="LoRA to apply.")
    lora_scale: Scale = Field(default=1.0, description="How strongly the LoRA acts.")
    extra_lora: UnicodeText | None = Field(default=None, description="A second LoRA.")
    extra_lora_scale: Scale = Field(default=1.0, description="How strongly the second LoRA acts.")


def validate_inputs(raw: Mapping[str, Any], max_prompt_chars: int) -> tuple[Inputs, tuple[str, ...]]:
    """The inputs of a request, and the ignored keys, shortened.

    Raises `InvalidInput` with every invalid field.
    """
    given = {key: value for key, value in raw.items() if value is not None}
    errors: list[FieldError] = []
    inputs: Inputs | None = None
    try:
        inputs = Inputs.model_validate(given)
    except ValidationError as error:
        errors += [_field_error(problem) for problem in error.errors(include_url=False)]
    errors += _prompt_errors(given.get("prompt"), max_prompt_chars)
    if inputs is None or errors:
        raise InvalidInput(tuple(errors))
    return inputs, tuple(shorten_name(key) for key in given if key not in Inputs.model_fields)


def shorten_name(name: str) -> str:
    """The first `MAX_NAME_CHARS` characters of a name from a caller, on one line.

    Line breaks, control characters and lone surrogates are escaped.
    """
    short = name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in short)


def _field_error(problem: ErrorDetails) -> FieldError:
    field, message = str(problem["loc"][0]), problem["msg"]
    if field in ("image", "mask") and "pattern" in message:
        message = "Input should be an http(s) URL or a data: URI"
        if problem["input"] == "":
            message += f", it is empty; leave it out, or send null, for no {field}"
    return FieldError(field, message.removeprefix("Value error, "), problem["type"])


def _prompt_errors(prompt: object, max_chars: int) -> list[FieldError]:
    if isinstance(prompt, str) and len(prompt) > max_chars:
        return [
            FieldError(
                "prompt", f"Input should have at most {max_chars} characters, it has {len(prompt)}", "string_too_long"
            )
        ]
    return []
