"""Calls a pool of `ModelReplica`s through a Ray Serve handle."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.errors import EngineFailed, PoolFull, ServiceError
from serve.events import Event
from serve.generation_plan import GenerationPlan
from serve.lora.resolved_lora import ResolvedLora
from serve.model_specs import ImageArray, MaskArray

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5.0


class PoolClient:
    """Client of one pool."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self._name = name
        # Configured once: each `.options()` call on a fresh handle would start its own router tasks.
        self._handle = handle.options(method_name="generate", stream=True)

    async def generate(
        self,
        plan: GenerationPlan,
        image: ImageArray | None = None,
        mask: MaskArray | None = None,
        loras: Sequence[ResolvedLora[Any]] = (),
    ) -> AsyncGenerator[Event, None]:
        """The events of one prediction, up to `Finished`. Closing the generator cancels the work within one step.

        If the replica dies, the plan is run once more on another one. Its seeds are fixed, so the images are the same,
        and some may be reported twice. Raises `ServiceError`.
        """
        for last_attempt in (False, True):
            try:
                async with aclosing(self._call(plan, image, mask, list(loras))) as events:
                    async for event in events:
                        yield event
                return
            except RayActorError as error:
                log.warning("a replica of %s was lost: %s", self._name, type(error).__name__)
                if last_attempt:
                    raise EngineFailed("two replicas died while generating this prediction; try again") from None

    async def _call(self, *arguments: object) -> AsyncGenerator[Event, None]:
        stream = self._handle.remote(*arguments)
        ended = False
        try:
            async for event in stream:
                yield event
            ended = True
        except RayActorError:
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
            log.error("a replica of %s failed: %s", self._name, error)
            raise EngineFailed from None
        finally:
            if not ended:
                stream.cancel()
