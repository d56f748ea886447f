"""The methods of the Python handle, with plain data on both sides: callers need not have this package."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from serve.api.builtin_errors import builtin_errors
from serve.api.creation_headers import parse_cancel_after, parse_idempotency_key
from serve.api.http_messages import PAGE_SIZE, InvalidBody
from serve.api.pages import both_ways_page, parse_page_query
from serve.api.replicate import listed_prediction_json, prediction_json
from serve.errors import DatabaseUnavailable, FieldError, InvalidInput
from serve.inputs import shorten_name
from serve.media.links import LinkSigner
from serve.media.output_store import OutputStore
from serve.owner_death import Owner, OwnerReference, is_reference
from serve.predictions.create_options import CreateOptions
from serve.predictions.prediction import Prediction
from serve.predictions.request import ServedVersion, resolve_version
from serve.predictions.service import PredictionService
from serve.settings import Settings

CANCEL_RETRY_S = 2.0

log = logging.getLogger(__name__)


class HandleApi:
    """Base class of the ingress deployment, because Ray calls methods of the deployment itself."""

    def __init__(
        self, predictions: PredictionService, outputs: OutputStore, links: LinkSigner, settings: Settings
    ) -> None:
        self._predictions = predictions
        self._outputs = outputs
        self._links = links
        self._settings = settings

    async def predict(
        self,
        inputs: Mapping[str, Any],
        version: str | None = None,
        cancel_after: str | None = None,
        owner: OwnerReference = (),
    ) -> dict[str, Any]:
        """Runs a prediction and returns it when it has ended. Cancelling the call cancels the prediction."""
        with builtin_errors():
            options = CreateOptions(attached=True, lifetime=parse_lifetime(cancel_after))
            async with self._attached(inputs, version, options, owner) as prediction:
                return await self._to_json(await self._predictions.wait(prediction.id))

    async def stream(
        self,
        inputs: Mapping[str, Any],
        version: str | None = None,
        cancel_after: str | None = None,
        owner: OwnerReference = (),
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Runs a prediction and yields it when it is accepted and after every change.

        Cancelling the call cancels the prediction.
        """
        with builtin_errors():
            options = CreateOptions(attached=True, lifetime=parse_lifetime(cancel_after))
            async with self._attached(inputs, version, options, owner) as prediction:
                async for state in self._predictions.watch(prediction.id):
                    yield await self._to_json(state)

    async def create(
        self,
        inputs: Mapping[str, Any],
        version: str | None = None,
        cancel_after: str | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Accepts a prediction, which runs whether the caller stays or leaves."""
        with builtin_errors():
            served, given = self._prepare(inputs, version)
            key = None
            if idempotency_key is not None:
                text = check_text("idempotency_key", idempotency_key)
                key = parse_idempotency_key(text, "handle", {"version": version, "input": given})
            options = CreateOptions(idempotency=key, lifetime=parse_lifetime(cancel_after))
            return await self._to_json(await self._predictions.create(given, served, options))

    async def get(self, prediction_id: str) -> dict[str, Any]:
        with builtin_errors():
            return await self._to_json(await self._predictions.get(check_text("prediction_id", prediction_id)))

    async def cancel(self, prediction_id: str) -> dict[str, Any]:
        """Ends a prediction as canceled and returns it; one that has ended stays what it is."""
        with builtin_errors():
            return await self._to_json(await self._predictions.cancel(check_text("prediction_id", prediction_id)))

    async def wait(self, prediction_id: str, timeout_s: float | None = None) -> dict[str, Any]:
        """The prediction when it has ended. Raises TimeoutError after `timeout_s`; the prediction goes on."""
        with builtin_errors():
            limit_s = None if timeout_s is None else check_seconds("timeout_s", timeout_s)
            current = await self._predictions.wait(check_text("prediction_id", prediction_id), limit_s)
            if current.ended:
                return await self._to_json(current)
        raise TimeoutError(f"the prediction {current.id} is {current.status} after {timeout_s:g} s")

    async def watch(self, prediction_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """Yields a prediction now and after every change, until it has ended."""
        with builtin_errors():
            async for state in self._predictions.watch(check_text("prediction_id", prediction_id)):
                yield await self._to_json(state)

    async def list(
        self, cursor: str | None = None, created_after: str | None = None, created_before: str | None = None
    ) -> dict[str, Any]:
        """A page of predictions, newest first; `previous` and `next` are the cursors of its neighbours."""
        with builtin_errors():
            given = {"cursor": cursor, "created_after": created_after, "created_before": created_before}
            parameters = {name: check_text(name, text) for name, text in given.items() if text is not None}
            query = parse_page_query(parameters, PAGE_SIZE + 1)
            arguments = (self._outputs, self._links, self._settings)
            results = [await listed_prediction_json(each, *arguments) for each in await self._predictions.page(query)]
            page = both_ways_page(results, query, "")
            return page | {name: cursor_of(page[name]) for name in ("previous", "next")}

    @asynccontextmanager
    async def _attached(
        self, inputs: Mapping[str, Any], version: str | None, options: CreateOptions, owner: OwnerReference
    ) -> AsyncGenerator[Prediction, None]:
        """A prediction that is cancelled when the block is left or when the process of `owner` has died."""
        if not is_reference(owner):
            raise _invalid(
                "owner", "should be a list with one reference to an object of yours, such as [ray.put(None)]"
            )
        caller = Owner(owner)
        served, given = self._prepare(inputs, version)
        async with self._predictions.create_attached(given, served, options) as prediction:
            watching = asyncio.create_task(self._cancel_without(caller, prediction))
            try:
                yield prediction
            finally:
                watching.cancel()

    async def _cancel_without(self, caller: Owner, prediction: Prediction) -> None:
        await caller.wait_until_dead()
        log.info("%s: its caller has died", prediction.log_id, extra=prediction.log_fields)
        while True:
            try:
                await self._predictions.cancel(prediction.id)
                return
            except DatabaseUnavailable:
                await asyncio.sleep(CANCEL_RETRY_S)

    def _prepare(self, inputs: Mapping[str, Any], version: str | None) -> tuple[ServedVersion, dict[str, Any]]:
        served = resolve_version(self._settings, None if version is None else check_text("version", version))
        return served, served.rename_inputs(check_json(inputs))

    async def _to_json(self, prediction: Prediction) -> dict[str, Any]:
        return await prediction_json(prediction, self._outputs, self._links, self._settings)


def check_json(inputs: object) -> dict[str, Any]:
    """The inputs as JSON has them. Raises `InvalidInput` naming every input that is not JSON."""
    if not isinstance(inputs, Mapping):
        raise _invalid("inputs", f"should be a dictionary, not {type(inputs).__name__}")
    problems = [error for name, value in inputs.items() if (error := _json_error(name, value))]
    if problems:
        raise InvalidInput(tuple(problems))
    return dict(json.loads(json.dumps(dict(inputs))))


def _json_error(name: object, value: object) -> FieldError | None:
    if not isinstance(name, str):
        return FieldError(shorten_name(repr(name)), "names of inputs should be strings", "json_type")
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        message = f"should be JSON, not {type(value).__name__}; send an image as a URL or a data: URI"
        return FieldError(shorten_name(name), message, "json_type")
    return None


def check_text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise _invalid(name, f"should be a string, not {type(value).__name__}")


def check_seconds(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise _invalid(name, f"{shorten_name(repr(value))} is not a number of seconds from 0")


def parse_lifetime(cancel_after: object) -> timedelta | None:
    return None if cancel_after is None else parse_cancel_after(check_text("cancel_after", cancel_after))


def cursor_of(link: str | None) -> str | None:
    return None if link is None else parse_qs(urlsplit(link).query)["cursor"][0]


def _invalid(name: str, message: str) -> InvalidInput:
    """An argument of a method is invalid, not one of the inputs."""
    return InvalidBody((FieldError(name, message, "value_error"),))
