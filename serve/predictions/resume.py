"""Prepares a stored prediction to run again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve.predictions.own_files import UploadedInputs
from serve.predictions.prediction import Prediction
from serve.predictions.request import PreparedRequest, prepare_request, resolve_version
from serve.settings import Settings


def resume_request(
    prediction: Prediction, raw_inputs: Mapping[str, Any], settings: Settings, uploads: UploadedInputs
) -> PreparedRequest:
    """The request of a stored prediction, with the plan and so the seeds that it was accepted with.

    `raw_inputs` are its inputs in full. Raises `UnknownVersion` if its model is not served any more, and
    `InvalidInput` if files that it needs were removed.
    """
    served = resolve_version(settings, f"{prediction.model}:{prediction.version}")
    prepared = prepare_request(raw_inputs, served, settings, prediction.plan.seeds[0], uploads)
    return replace(prepared, plan=prediction.plan)
