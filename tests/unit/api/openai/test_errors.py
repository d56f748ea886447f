"""Failed predictions become errors in OpenAI's form."""

import pytest

from serve.api.openai.errors import ImageFailed, check_ended, openai_error
from serve.errors import (
    AllImagesFlagged,
    EngineFailed,
    FetchFailed,
    InvalidImage,
    InvalidLora,
    LorasMissing,
    LorasTooLarge,
    PredictionFailed,
    StorageFailed,
)
from serve.predictions.prediction import Prediction
from tests.fakes import NOON, prediction


def failed(error: PredictionFailed) -> Prediction:
    return prediction().failed(NOON, str(error))


FLAGGED = failed(AllImagesFlagged())


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (AllImagesFlagged(), 400, "moderation_blocked", None),
        (FetchFailed("a.safetensors", "404", "extra_lora"), 400, "invalid_value", "extra_lora"),
        (InvalidLora("owner/name", "another model", "replicate_weights"), 400, "invalid_value", "replicate_weights"),
        (InvalidImage("mask", "too small"), 400, "invalid_value", "mask"),
        (LorasTooLarge(64, 32), 400, "invalid_value", "replicate_weights"),
        (LorasMissing(("key",)), 500, None, None),
        (StorageFailed(), 500, None, None),
        (EngineFailed(), 500, None, None),
    ],
)
def test_error_that_the_caller_can_mend_is_a_400(
    error: PredictionFailed, status: int, code: str | None, param: str | None
) -> None:
    with pytest.raises(ImageFailed) as raised:
        check_ended([failed(error)])
    body = openai_error(raised.value)["error"]
    assert raised.value.status == status
    assert (body["code"], body["param"], body["message"]) == (code, param, str(error))


def test_withheld_images_are_an_error_only_if_no_other_image_is_left() -> None:
    succeeded = prediction().succeeded(NOON)
    check_ended([FLAGGED, succeeded])
    for predictions in ([FLAGGED, FLAGGED], [succeeded, FLAGGED, failed(EngineFailed())]):
        with pytest.raises(ImageFailed):
            check_ended(predictions)
