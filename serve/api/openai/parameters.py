"""The parameters of OpenAI's Images API: types, bounds and defaults."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from serve.api.http_messages import InvalidBody
from serve.errors import FieldError
from serve.inputs import Inputs, Integer, UnicodeText, shorten_name

MAX_IMAGES = 10

OTHER_NAMES = {"num_outputs": "n", "output_quality": "output_compression"}
"""Our inputs for which OpenAI's API has another name."""
OWN_INPUTS = frozenset(Inputs.model_fields) - {
    *OTHER_NAMES,
    "prompt",
    "model",
    "image",
    "mask",
    "output_format",
    "seed",
}
"""Our inputs for which OpenAI's API has no name, apart from `seed`. Bodies may have them as further fields."""
FILE_FIELDS = frozenset({"image", "mask"})
"""Parts of an edit. They are no parameters of a generation."""
UNSUPPORTED = frozenset({"frame_count", "frame_duration_ms", "markup", "svg"})
"""Parameters of OpenAI's API for animations, vector graphics and overlays, which FLUX.1 cannot generate."""

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
ResponseFormat = Literal["url", "b64_json"]
OutputFormat = Literal["png", "jpeg", "jpg", "webp"]


class Parameters(BaseModel):
    """Validated parameters. Numbers and booleans may be strings, as they are in multipart bodies."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: UnicodeText
    model: UnicodeText | None = None
    n: Annotated[Integer, Field(ge=1, le=MAX_IMAGES)] = 1
    size: str = "auto"
    quality: Quality = "auto"
    response_format: ResponseFormat | None = None
    output_format: OutputFormat = "png"
    output_compression: Annotated[Integer, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] = "auto"
    stream: bool = False
    partial_images: Annotated[Integer, Field(ge=0, le=3)] = 0
    seed: Integer | None = None
    """Our input: image i is generated with `seed + i`."""

    moderation: Literal["auto", "low"] = "auto"
    style: Literal["vivid", "natural"] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    """This and the five fields above are accepted and have no effect."""


def validate_parameters(body: Mapping[str, Any]) -> Parameters:
    """The parameters of a body without its files. Raises `InvalidBody` with every invalid field."""
    given = {key: value for key, value in body.items() if value is not None}
    errors = [error for key in given if (error := _key_error(key))]
    parameters: Parameters | None = None
    try:
        parameters = Parameters.model_validate(given)
    except ValidationError as error:
        errors += [_field_error(problem) for problem in error.errors(include_url=False)]
    if parameters is not None:
        errors += _combination_errors(parameters)
    if parameters is None or errors:
        raise InvalidBody(tuple(errors))
    return parameters


def _combination_errors(parameters: Parameters) -> list[FieldError]:
    errors = []
    if parameters.background == "transparent":
        errors.append(FieldError("background", "transparent is not supported; send opaque or auto"))
    if parameters.output_format == "png" and parameters.output_compression not in (None, 100):
        errors.append(FieldError("output_compression", "png has no compression below 100; use jpeg or webp"))
    if parameters.stream and parameters.response_format == "url":
        errors.append(FieldError("response_format", "a stream has b64_json only; leave this parameter out"))
    return errors


def _field_error(problem: ErrorDetails) -> FieldError:
    return FieldError(str(problem["loc"][0]), problem["msg"].removeprefix("Value error, "), problem["type"])


def _key_error(key: str) -> FieldError | None:
    if key in Parameters.model_fields or key in OWN_INPUTS:
        return None
    if key in OTHER_NAMES:
        return FieldError(key, f"is named {OTHER_NAMES[key]} in this API", "extra_forbidden")
    if key in FILE_FIELDS:
        return FieldError(key, "is a file of POST /v1/images/edits", "extra_forbidden")
    if key in UNSUPPORTED:
        return FieldError(key, "is not supported; remove this parameter", "unsupported")
    return FieldError(shorten_name(key), "is not a parameter of this API; remove it", "extra_forbidden")
