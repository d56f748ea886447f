"""Calls a pool of `ModelReplica`s through a Ray Serve handle."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve import tracing
from serve.errors import EngineFailed, PoolFull, ReplicaLost, ServiceError
from serve.events import Event, Started
from serve.generation_plan import GenerationPlan
from serve.logs import prediction_fields
from serve.lora.resolved_lora import ResolvedLora
from serve.model_specs import ImageArray, MaskArray
from serve.owner_death import OwnerReference

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5.0
SILENCE_LIMIT_S = 30.0
"""A replica that sends nothing for this long has hung: it says every `ALIVE_PERIOD_S` that it has not."""
LOST = (RayActorError, ObjectLostError, OutOfMemoryError)
REPLICA_ERRORS = (*LOST, TimeoutError)


class PoolClient:
    """Client of one pool. Its replicas stop the work of this client if the process of `owner` has died."""

    def __init__(self, name: str, handle: DeploymentHandle, owner: OwnerReference = ()) -> None:
        self._name = name
        self._owner = owner
        # Configured once: each `.options()` call on a fresh handle would start its own router tasks.
        self._handle = handle.options(method_name="generate", stream=True)

    async def generate(
        self,
        plan: GenerationPlan,
        image: ImageArray | None = None,
        mask: MaskArray | None = None,
        loras: Sequence[ResolvedLora[Any]] = (),
        log_id: str = "",
    ) -> AsyncGenerator[Event, None]:
        """The events of one prediction, up to `Finished`. Closing the generator cancels the work within one step.

        Log messages about the prediction begin with `log_id`, here and in the replica.

        Raises `ServiceError`, and `ReplicaLost` if the replica dies or sends no event for `SILENCE_LIMIT_S`.
        """
        started, limit_s = False, None
        async with aclosing(self._call(plan, image, mask, list(loras), log_id)) as events:
            while True:
                try:
                    # The first event may take long: a replica has to start, or to have a place.
                    async with asyncio.timeout(limit_s):
                        event = await anext(events, None)
                except REPLICA_ERRORS as error:
                    log.warning("%s: a replica of %s was lost: %s", log_id, self._name, type(error).__name__)
                    raise ReplicaLost(started) from None
                if event is None:
                    return
                started, limit_s = started or isinstance(event, Started), SILENCE_LIMIT_S
                yield event

    async def _call(self, *arguments: object) -> AsyncGenerator[Event, None]:
        """Calls a replica. The last one of `arguments` is the `log_id`."""
        stream = self._handle.remote(*arguments, self._owner, dict(prediction_fields.get()), tracing.carrier())
        ended = False
        try:
            async for event in stream:
                yield event
            ended = True
        except LOST:
            raise
        except BackPressureError:
            raise PoolFull(self._name, RETRY_AFTER_S) from None
        except DeploymentUnavailableError:
            raise EngineFailed(f"the pool {self._name!r} is not available; the operator's log has the cause") from None
        except RayTaskError as error:
            # The text of Ray's wrapper is a traceback with addresses; its cause is what the replica raised.
            cause = error.cause
            if isinstance(cause, ServiceError):
                raise cause from None
            log.error("%s: a replica of %s failed: %s", arguments[-1], self._name, error)
            raise EngineFailed from None
        finally:
            if not ended:
                stream.cancel()
