"""Takes up the predictions of lost processes."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from serve.access.caller import OPERATOR
from serve.errors import DatabaseUnavailable, EngineFailed, ServiceError, StorageUnavailable
from serve.predictions.input_images import InputImages
from serve.predictions.input_store import InputStore
from serve.predictions.lease import Claim
from serve.predictions.own_files import OwnFiles, UploadedInputs
from serve.predictions.prediction import Prediction
from serve.predictions.prediction_metrics import record_failure, record_retry
from serve.predictions.request import PreparedRequest, prepare_request, resolve_version
from serve.predictions.runner import LOST_TOO_OFTEN, MAX_LOSSES, PredictionRunner
from serve.predictions.running_tasks import RunningTasks
from serve.predictions.store import PredictionStore
from serve.settings import Settings

log = logging.getLogger(__name__)


class Resumer:
    """Starts claimed predictions again, or ends those that cannot go on."""

    def __init__(
        self,
        settings: Settings,
        store: PredictionStore,
        runner: PredictionRunner,
        input_images: InputImages,
        input_store: InputStore,
        own_files: OwnFiles,
        tasks: RunningTasks,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._store = store
        self._runner = runner
        self._input_images = input_images
        self._input_store = input_store
        self._own_files = own_files
        self._tasks = tasks
        self._clock = clock

    async def take_up(self, claim: Claim) -> None:
        """A caller that waited for an attached prediction is gone, so it is cancelled."""
        prediction, now = claim.prediction, self._clock()
        if claim.attached or prediction.is_overdue(now):
            await self._store.finish(prediction.id, lambda each: each.canceled(now), release=True)
        elif claim.losses >= MAX_LOSSES:
            record_failure(prediction.plan.pool, EngineFailed())
            await self._store.finish(prediction.id, lambda each: each.failed(now, LOST_TOO_OFTEN), release=True)
        else:
            record_retry(prediction.plan.pool, "process")
            log.warning("%s: its process was lost; it starts again", prediction.log_id, extra=prediction.log_fields)
            self._tasks.start(prediction, self._run(prediction, claim.losses))

    async def _run(self, prediction: Prediction, losses: int) -> None:
        try:
            raw_inputs = await self._input_store.load(prediction)
            uploads = await self._own_files.find(raw_inputs, OPERATOR)
            request = resume_request(prediction, raw_inputs, self._settings, uploads)
            images = await self._input_images.load(request.inputs, request.plan)
        except (DatabaseUnavailable, StorageUnavailable):
            log.warning("%s: its inputs cannot be read; it starts again later", prediction.log_id)
            return
        except ServiceError as error:
            text = str(error)
            record_failure(prediction.plan.pool, error)
            await self._store.finish(prediction.id, lambda each: each.failed(self._clock(), text), release=True)
            return
        await self._store.update(prediction.id, lambda each: each.resumed())
        await self._runner.run(prediction.id, images, request.references, losses)


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
