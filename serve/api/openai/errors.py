"""Errors in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

import re
from collections.abc import Sequence
from typing import Any

from serve.errors import AllImagesFlagged, InvalidInput, LorasTooLarge, NotFound, PredictionFailed, ServiceError
from serve.inputs import Inputs, shorten_name
from serve.predictions.prediction import Prediction

Error = dict[str, str | None]

INVALID_REQUEST = "invalid_request_error"
USER_ERROR = "image_generation_user_error"
SERVER_ERROR = "server_error"
MODERATION_BLOCKED = "moderation_blocked"

TYPES = {429: "requests"}
"""The type of an error by its status, if it is not `INVALID_REQUEST` (below 500) or `SERVER_ERROR`."""
CODES = {
    401: "invalid_api_key",
    404: "unknown_url",
    405: "method_not_supported",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}
FIELD_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unsupported": "unsupported_parameter",
    "string_too_long": "string_above_max_length",
}
"""The code of a field error by its kind. Kinds that end with `_type` are `invalid_type`, others `invalid_value`."""

_PATH = re.compile(r"/v1/images(/.*)?")
_LORAS_TOO_LARGE = str(LorasTooLarge(0, 0)).partition(" 0")[0]


class UnknownModel(NotFound):
    """No served model and no alias has this name."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"the model {shorten_name(self.model)!r} does not exist; GET /v1/models lists the models"


class ImageFailed(PredictionFailed):
    """An accepted prediction ended without images.

    `code` or `param` is given if the caller can change that: `param` is the input that was the cause.
    """

    def __init__(self, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code, param)
        self.message = message
        self.code = code
        self.param = param
        self.status = 400 if code or param else 500

    def __str__(self) -> str:
        return self.message


def is_images_path(path: str) -> bool:
    return _PATH.fullmatch(path) is not None


def openai_status(error: ServiceError) -> int:
    """The HTTP status of `error`: OpenAI's API has 400 for inputs that are invalid."""
    return 400 if isinstance(error, InvalidInput) else error.status


def openai_error(error: ServiceError) -> dict[str, Any]:
    """The body of an error response."""
    return {"error": _error(error)}


def check_ended(predictions: Sequence[Prediction]) -> None:
    """Raises `ImageFailed` if a prediction of one request failed.

    Images that the safety checker withheld are left out, unless no other image is left.
    """
    failures = [_failure(prediction) for prediction in predictions if prediction.status != "succeeded"]
    others = [failure for failure in failures if failure.code != MODERATION_BLOCKED]
    if others or len(failures) == len(predictions):
        raise (others or failures)[0]


def _failure(prediction: Prediction) -> ImageFailed:
    """The error for a prediction that has ended and not succeeded. The record has the text of its error only."""
    if prediction.status == "canceled":
        return ImageFailed("the prediction was canceled; send the request again", "canceled")
    text = prediction.error or "the prediction failed"
    if text == str(AllImagesFlagged()):
        return ImageFailed(text, MODERATION_BLOCKED)
    if text.startswith(_LORAS_TOO_LARGE):
        return ImageFailed(text, "invalid_value", "replicate_weights")
    # An error about an input starts with its name.
    field = text.partition(":")[0].removeprefix("- ")
    return ImageFailed(text, "invalid_value", field) if field in Inputs.model_fields else ImageFailed(text)


def _error(error: ServiceError) -> Error:
    match error:
        case InvalidInput():
            return _invalid_input(error)
        case UnknownModel():
            return _fields(str(error), INVALID_REQUEST, "model_not_found", "model")
        case ImageFailed():
            return _fields(str(error), USER_ERROR if error.status == 400 else SERVER_ERROR, error.code, error.param)
        case _:
            error_type = TYPES.get(error.status, SERVER_ERROR if error.status >= 500 else INVALID_REQUEST)
            return _fields(str(error), error_type, CODES.get(error.status))


def _invalid_input(error: InvalidInput) -> Error:
    """All field errors in the message; `param` and `code` are those of the first one."""
    message = "; ".join(f"{each.field}: {each.message}" for each in error.field_errors)
    first = error.field_errors[0]
    code = "invalid_type" if first.kind.endswith("_type") else FIELD_CODES.get(first.kind, "invalid_value")
    return _fields(message, INVALID_REQUEST, code, first.field)


def _fields(message: str, error_type: str, code: str | None = None, param: str | None = None) -> Error:
    return {"message": message, "type": error_type, "param": param, "code": code}
