"""An image request: its served model, the inputs of its predictions, and what its response needs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serve.api.http_messages import InvalidBody
from serve.api.openai.errors import UnknownModel
from serve.api.openai.parameters import OWN_INPUTS, Parameters, Quality, ResponseFormat, validate_parameters
from serve.errors import FieldError, InvalidInput, NotFound
from serve.inputs import Inputs
from serve.model_specs import MODEL_SPECS, ImageFormat, Size
from serve.output_sizes import CUSTOM_SIDE_MAX, CUSTOM_SIDE_MIN, SIZES
from serve.predictions.request import ServedVersion, resolve_model, resolve_model_id, resolve_version
from serve.settings import InputBounds, Settings

IMAGES_PER_PREDICTION = 4
"""The maximum of `num_outputs`. A request for more images becomes several predictions."""
MAX_STEPS = 50
SIZE_INPUTS = ("aspect_ratio", "width", "height", "megapixels")
URL_MODELS = "dall-e-"
"""OpenAI's models whose names start with this respond with URLs by default, later ones with base64."""

EffectiveQuality = Literal["low", "medium", "high"]

QUALITIES: dict[Quality, EffectiveQuality] = {
    "auto": "medium", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
    "standard": "medium", "hd": "high",
}  # fmt: skip
STEP_FACTORS: dict[EffectiveQuality, float] = {"low": 0.5, "medium": 1.0, "high": 1.5}
"""Denoising steps, as a multiple of the recommended number."""
DEFAULT_QUALITIES = ("auto", "standard")
"""With these, the served model's default number of steps applies."""
FORMATS: dict[str, ImageFormat] = {"png": "png", "jpeg": "jpg", "jpg": "jpg", "webp": "webp"}
RATIOS = {size: (megapixels, ratio) for megapixels, ratios in SIZES.items() for ratio, size in ratios.items()}
"""The sizes that are not custom, with their inputs `megapixels` and `aspect_ratio`."""

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A valid body, apart from its files."""

    served: ServedVersion
    parameters: Parameters
    own_inputs: Mapping[str, Any]
    """The inputs for which OpenAI's API has no name, as they were sent."""
    size: Size | None
    """The requested size, scaled to fit the limits; None for `auto`."""

    @property
    def quality(self) -> EffectiveQuality:
        return QUALITIES[self.parameters.quality]

    @property
    def file_format(self) -> ImageFormat:
        return FORMATS[self.parameters.output_format]

    @property
    def response_format(self) -> ResponseFormat:
        default: ResponseFormat = "url" if (self.parameters.model or "").startswith(URL_MODELS) else "b64_json"
        return self.parameters.response_format or default

    def prediction_inputs(self, image: str | None = None, mask: str | None = None) -> list[dict[str, Any]]:
        """The inputs of each prediction. `image` and `mask` are `data:` URIs of an edit."""
        files = {} if image is None else {"image": image, "mask": mask}
        size = _size_inputs(self.size) if image is None else {}
        common = {**size, **self._steps(), **self.own_inputs, **files, **self._output_inputs()}
        starts = range(0, self.parameters.n, IMAGES_PER_PREDICTION)
        return [
            {
                "prompt": self.parameters.prompt,
                **common,
                "num_outputs": min(IMAGES_PER_PREDICTION, self.parameters.n - start),
                "seed": self._seed(start),
            }
            for start in starts
        ]

    def renamed(self, error: InvalidInput) -> InvalidInput:
        """`error` with the names that OpenAI's API has for the inputs."""
        names = {"num_outputs": "n", "output_quality": "output_compression"}
        if self.size is not None:
            names |= dict.fromkeys(("width", "height", "aspect_ratio"), "size")
        renamed = (each._replace(field=names.get(each.field, each.field)) for each in error.field_errors)
        return InvalidInput(tuple(dict.fromkeys(renamed)))

    def _output_inputs(self) -> dict[str, Any]:
        if self.file_format == "png":
            return {"output_format": "png"}
        quality = self.parameters.output_compression
        return {"output_format": self.file_format, "output_quality": 100 if quality is None else quality}

    def _steps(self) -> dict[str, int]:
        if self.parameters.quality in DEFAULT_QUALITIES:
            return {}
        variant = self.served.model.default_inputs.get("model", Inputs.model_fields["model"].default)
        steps = round(STEP_FACTORS[self.quality] * MODEL_SPECS[variant].recommended_steps)
        bounds = self.served.model.input_bounds.get("num_inference_steps", InputBounds())
        lowest, highest = bounds.minimum or 1, bounds.maximum or MAX_STEPS
        return {"num_inference_steps": int(min(max(steps, lowest), highest))}

    def _seed(self, start: int) -> int | None:
        """The seed of the prediction whose first image is number `start`."""
        seed = self.parameters.seed
        return seed if seed is None or seed < 0 else seed + start


def parse_request(body: Mapping[str, Any], settings: Settings) -> ImageRequest:
    """Parses a body without its files. Raises `InvalidInput` and `UnknownModel`."""
    name = body.get("model")
    served = _resolve(settings, name if isinstance(name, str) else None)
    renamed = served.rename_inputs(body)
    parameters = validate_parameters(renamed)
    own_inputs = {key: value for key, value in renamed.items() if key in OWN_INPUTS and value is not None}
    return ImageRequest(served, parameters, own_inputs, _parse_size(parameters.size, own_inputs))


def _resolve(settings: Settings, name: str | None) -> ServedVersion:
    """The served model of an alias, `owner/name` or `name`; the first one for None."""
    target = None if name is None else settings.openai.model_aliases.get(name, name)
    if target is None:
        return resolve_version(settings, None)
    try:
        model = resolve_model_id(settings, target)
    except NotFound:
        raise UnknownModel(name or "") from None
    return resolve_model(settings, model.owner, model.name)


def _parse_size(text: str, own_inputs: Mapping[str, Any]) -> Size | None:
    if text == "auto":
        return None
    others = [name for name in SIZE_INPUTS if name in own_inputs]
    if others:
        raise _invalid_size(f"cannot be combined with {', '.join(others)}; send one of them")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise _invalid_size("is not a size; send auto, or a width and a height in pixels such as 1024x1024")
    return _fit(int(match[1]), int(match[2]))


def _fit(width: int, height: int) -> Size:
    """The size, scaled down so that its longer side is at most `CUSTOM_SIDE_MAX`."""
    scale = min(1.0, CUSTOM_SIDE_MAX / max(width, height, 1))
    size = round(width * scale), round(height * scale)
    if min(size) < CUSTOM_SIDE_MIN:
        scaled = "" if scale == 1 else f", which is scaled to {size[0]}x{size[1]}"
        raise _invalid_size(f"is {width}x{height}{scaled}; each side needs at least {CUSTOM_SIDE_MIN} pixels")
    return size


def _size_inputs(size: Size | None) -> dict[str, Any]:
    if size is None:
        return {}
    if size in RATIOS:
        megapixels, ratio = RATIOS[size]
        return {"megapixels": megapixels, "aspect_ratio": ratio}
    return {"aspect_ratio": "custom", "width": size[0], "height": size[1]}


def _invalid_size(why: str) -> InvalidBody:
    return InvalidBody((FieldError("size", why),))
