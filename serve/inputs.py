"""The 21 inputs: their types, bounds, defaults and messages. Knows no pool, no picture and no HTTP.

Numbers may come as strings and booleans as "true"; `null` is the same as absent; keys that we do not know are dropped
and named, as the API that we answer in does. Everything else that does not fit is a fault, and all are told at once.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from serve.errors import FieldError, InvalidInput
from serve.model_specs import CUSTOM_SIDE_MAX, CUSTOM_SIDE_MIN

SHOWN_CHARS = 64

AspectRatio = Literal["1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21", "custom"]


def _no_boolean(value: object) -> object:
    """Python counts booleans among the integers; JSON does not."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not a boolean")
    return value


def _number_as_text(value: object) -> object:
    """`megapixels` is a string in the schema, and a number to everybody who writes it."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value


def _unicode(value: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer and no answer can take."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("Input should be valid Unicode text") from None
    return value


UnicodeText = Annotated[str, AfterValidator(_unicode)]
Integer = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]
Side = Annotated[Integer, Field(ge=CUSTOM_SIDE_MIN, le=CUSTOM_SIDE_MAX)]
Scale = Annotated[Number, Field(ge=-1, le=3)]
ImageUri = Annotated[str, Field(pattern=r"^(?i:https?://|data:).+", json_schema_extra={"format": "uri"})]


class Inputs(BaseModel):
    """Validated inputs, in the order of the API's schema."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: UnicodeText = Field(description="What the picture should show.")
    image: ImageUri | None = Field(
        default=None, description="Picture to start from. With one, aspect_ratio, width and height are ignored."
    )
    mask: ImageUri | None = Field(
        default=None, description="Where to repaint `image`: white repaints, black keeps every pixel as it was."
    )
    aspect_ratio: AspectRatio = Field(
        default="1:1", description="Shape of the picture. `custom` takes width and height, and runs in bf16."
    )
    height: Side | None = Field(
        default=None, description="Height with aspect_ratio=custom, rounded to the nearest multiple of 16."
    )
    width: Side | None = Field(
        default=None, description="Width with aspect_ratio=custom, rounded to the nearest multiple of 16."
    )
    prompt_strength: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.8, description="How much of `image` is drawn anew: 0 returns it, 1 forgets it."
    )
    model: Literal["dev", "schnell"] = Field(
        default="dev", description="`dev` is at its best around 28 steps, `schnell` needs 4."
    )
    num_outputs: Annotated[Integer, Field(ge=1, le=4)] = Field(default=1, description="Pictures to draw.")
    num_inference_steps: Annotated[Integer, Field(ge=1, le=50)] = Field(default=28, description="Denoising steps.")
    guidance_scale: Annotated[Number, Field(ge=0, le=10)] = Field(
        default=3.0, description="How closely `dev` follows the prompt; lower looks more natural."
    )
    seed: Integer | None = Field(
        default=None, description="Start of the noise: picture i has the seed `seed + i`. Left out, it is random."
    )
    output_format: Literal["webp", "jpg", "png"] = Field(default="webp", description="File format of the pictures.")
    output_quality: Annotated[Integer, Field(ge=0, le=100)] = Field(
        default=80, description="Quality of webp and jpg files, 100 is best. png has none."
    )
    disable_safety_checker: bool = Field(default=False, description="Do not check the pictures.")
    go_fast: bool = Field(default=False, description="Draw with float8 weights instead of bf16.")
    megapixels: Annotated[Literal["1", "0.25"], BeforeValidator(_number_as_text)] = Field(
        default="1", description="Rough size of the picture."
    )
    replicate_weights: UnicodeText | None = Field(default=None, description="LoRA to draw with.")
    lora_scale: Scale = Field(default=1.0, description="How strongly the LoRA acts.")
    extra_lora: UnicodeText | None = Field(default=None, description="A second LoRA.")
    extra_lora_scale: Scale = Field(default=1.0, description="How strongly the second LoRA acts.")


def validate_inputs(raw: Mapping[str, Any], max_prompt_chars: int) -> tuple[Inputs, tuple[str, ...]]:
    """The inputs of a request, and the names of the keys that were dropped, fit to be shown.

    Raises `InvalidInput` with every faulty field.
    """
    given = {key: value for key, value in raw.items() if value is not None}
    faults: list[FieldError] = []
    inputs: Inputs | None = None
    try:
        inputs = Inputs.model_validate(given)
    except ValidationError as error:
        faults += [
            _fault(problem["loc"], problem["msg"], problem["type"]) for problem in error.errors(include_url=False)
        ]
    faults += _prompt_faults(given.get("prompt"), max_prompt_chars)
    if inputs is None or faults:
        raise InvalidInput(tuple(faults))
    return inputs, tuple(printable(key) for key in given if key not in Inputs.model_fields)


def printable(name: str) -> str:
    """A name that a caller made up, fit for a log and for an answer."""
    short = name if len(name) <= SHOWN_CHARS else f"{name[: SHOWN_CHARS - 1]}…"
    return short.encode(errors="backslashreplace").decode()


def _fault(location: tuple[int | str, ...], message: str, kind: str) -> FieldError:
    field = str(location[0])
    if field in ("image", "mask") and "pattern" in message:
        message = "Input should be an http(s) URL or a data: URI"
    return FieldError(field, message.removeprefix("Value error, "), kind)


def _prompt_faults(prompt: object, max_chars: int) -> list[FieldError]:
    if isinstance(prompt, str) and len(prompt) > max_chars:
        return [
            FieldError(
                "prompt", f"Input should have at most {max_chars} characters, it has {len(prompt)}", "string_too_long"
            )
        ]
    return []
