"""Sends the events of one prediction in order, while this process has the lease of their delivery."""

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection

from serve import telemetry
from serve.database.connection import Database
from serve.database.times import to_us
from serve.errors import DatabaseUnavailable, NotFound
from serve.predictions.lease import Lease
from serve.predictions.prediction import Prediction, utc_now
from serve.predictions.store import PredictionStore
from serve.predictions.webhook import Webhook
from serve.webhooks import delivery_rows as rows
from serve.webhooks.host_slots import HostSlots
from serve.webhooks.progress import Progress, as_started
from serve.webhooks.retries import retry_delay_s
from serve.webhooks.sender import WebhookSender

DATABASE_RETRY_S = 0.5
RESULTS = ("delivered", "failed", "dead")
"""Of an attempt. A dead webhook has no more of them."""
INTERNAL_ERROR = "an internal error; the log has its cause"

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    lease: Lease
    attempts: int
    """Failed attempts to deliver the last event."""
    is_leased: Callable[[], bool]
    """Whether the lease lasts longer than a request."""


class _LeaseLost(Exception):
    pass


class _HostBusy(Exception):
    """Too many requests are being sent to the host."""


class DeliveryRunner:
    """Sends `start`, `output` and `logs` once, and `completed` until the receiver has accepted it."""

    def __init__(
        self,
        database: Database,
        predictions: PredictionStore,
        sender: WebhookSender,
        slots: HostSlots,
        clock: Callable[[], datetime] = utc_now,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._database = database
        self._predictions = predictions
        self._sender = sender
        self._slots = slots
        self._clock = clock
        self._uniform = uniform

    async def run(self, delivery: ClaimedDelivery) -> None:
        """Returns when all events are delivered, when the next attempt is due later, or when the lease is lost."""
        try:
            await self._run(delivery)
        except NotFound:  # the prediction was removed
            await self._finish(delivery)
        except _LeaseLost:
            pass

    async def _run(self, delivery: ClaimedDelivery) -> None:
        state = await self._get(delivery.lease.prediction_id)
        webhook = state.webhook
        assert webhook is not None
        # If another process had the lease before, it has sent the events of an ended prediction but the last one.
        if not state.ended or delivery.lease.number == 1:
            state = await self._send_progress(delivery, webhook, state)
        if "completed" in webhook.events:
            await self._send_completed(delivery, webhook, state)
        else:
            await self._finish(delivery)

    async def _send_progress(self, delivery: ClaimedDelivery, webhook: Webhook, state: Prediction) -> Prediction:
        """Sends changes until the prediction has ended. Returns its last state."""
        progress = Progress(webhook.events)
        while not state.ended:
            wait_s = progress.wait_s(state)
            if wait_s == 0:
                await self._send_once(delivery, webhook, state)
                progress.sent(state)
                state = await self._get(state.id)
            else:
                state = await self._wait_for_change(state, wait_s)
        if "start" in progress.pending(state):
            await self._send_once(delivery, webhook, as_started(state))
            progress.sent(as_started(state))
        if "completed" not in webhook.events and progress.pending(state):
            await self._send_once(delivery, webhook, state)
        return state

    async def _get(self, prediction_id: str) -> Prediction:
        return await _patiently(lambda: self._predictions.get(prediction_id))

    async def _wait_for_change(self, seen: Prediction, timeout_s: float | None) -> Prediction:
        """The prediction after its next change, or `seen` after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await _patiently(lambda: self._predictions.wait_for_change(seen))
        except TimeoutError:
            return seen

    async def _send_once(self, delivery: ClaimedDelivery, webhook: Webhook, state: Prediction) -> None:
        """Sends a state that a later one makes obsolete, so failures do not matter."""
        with suppress(_HostBusy):
            error = await self._send(delivery, webhook, state, f"msg_{secrets.token_hex(16)}")
            if error is not None:
                log.info("prediction %s: an event was not delivered to %s: %s", state.id, webhook.host, error)

    async def _send_completed(self, delivery: ClaimedDelivery, webhook: Webhook, state: Prediction) -> None:
        attempts = delivery.attempts + 1
        try:
            # All attempts have the same id, by which a receiver recognizes a message that it has already got.
            error = await self._send(delivery, webhook, state, f"msg_{state.id}")
        except _HostBusy:
            now_us = to_us(self._clock())
            await self._write(lambda connection: rows.postpone(connection, delivery.lease, now_us))
            return
        if error is None:
            telemetry.WEBHOOKS.add(result="delivered")
            await self._finish(delivery)
            return
        now, delay_s = self._clock(), retry_delay_s(attempts, self._uniform)
        due_us = None if delay_s is None else to_us(now + timedelta(seconds=delay_s))
        await self._write(
            lambda connection: rows.record_failure(connection, delivery.lease, attempts, error, to_us(now), due_us)
        )
        telemetry.WEBHOOKS.add(result="dead" if delay_s is None else "failed")
        outcome = "it is dead" if delay_s is None else f"again in {delay_s:.0f} s"
        log.warning("prediction %s: its webhook at %s failed: %s; %s", state.id, webhook.host, error, outcome)

    async def _send(
        self, delivery: ClaimedDelivery, webhook: Webhook, state: Prediction, message_id: str
    ) -> str | None:
        """Returns None if the receiver has accepted the message, and otherwise the reason.

        Raises `_HostBusy`, and `_LeaseLost`: another process may be sending now.
        """
        async with self._slots.take(webhook.host, self._sender.total_timeout_s) as taken:
            if not taken:
                raise _HostBusy
            message = await _patiently(lambda: self._sender.compose(webhook, state, message_id))
            if not delivery.is_leased():
                raise _LeaseLost
            return INTERNAL_ERROR if message is None else await self._sender.send(message)

    async def _finish(self, delivery: ClaimedDelivery) -> None:
        await self._write(lambda connection: rows.finish(connection, delivery.lease))

    async def _write(self, work: Callable[[Connection], None]) -> None:
        await _patiently(lambda: self._database.write(work))


async def _patiently(call: Callable[[], Awaitable[Result]]) -> Result:
    """The result of a call, which is repeated until the database answers."""
    while True:
        try:
            return await call()
        except DatabaseUnavailable:
            await asyncio.sleep(DATABASE_RETRY_S)
