"""Delivers webhooks: claims what is due, renews the leases, and removes old rows."""

import asyncio
import contextvars
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from serve import telemetry
from serve.database.connection import Database
from serve.database.times import to_us
from serve.errors import DatabaseUnavailable
from serve.logs import set_prediction
from serve.predictions.lease import Lease
from serve.predictions.prediction import utc_now
from serve.predictions.store import PredictionStore
from serve.settings import WebhookSettings
from serve.webhooks import delivery_rows as rows
from serve.webhooks.delivery import RESULTS, ClaimedDelivery, DeliveryRunner
from serve.webhooks.host_slots import HostSlots
from serve.webhooks.sender import WebhookSender

POLL_S = 0.5
RECONNECT_S = 2.0
RENEW_PERIOD_S = 5.0
LEASE_MARGIN_S = 20.0
"""A lease lasts for this time and a request."""
SWEEP_PERIOD_S = 60.0
MEASURE_PERIOD_S = 10.0
"""Ray exports as often."""
MAX_CLAIMS = 100
MAX_DELIVERIES = 1000
"""Deliveries of one process at once; most of them wait for a change of their prediction."""
SWEEP_BATCH = 200

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    lease: Lease
    task: asyncio.Task[None]
    renewed_s: float
    """Value of the monotonic clock before the lease was renewed last."""


class WebhookDeliverer:
    """Any process may deliver any webhook. `run` must run in a task of its own."""

    def __init__(
        self,
        settings: WebhookSettings,
        database: Database,
        predictions: PredictionStore,
        sender: WebhookSender,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._sender = sender
        self._slots = HostSlots(settings.max_concurrent, settings.max_concurrent_per_host)
        self._runner = DeliveryRunner(database, predictions, sender, self._slots, clock)
        self._dead_max_age = timedelta(seconds=settings.dead_max_age_s)
        self._clock = clock
        self._monotonic = monotonic
        self._owner = secrets.token_hex(16)
        self._lease_s = settings.total_timeout_s + LEASE_MARGIN_S
        self._running: dict[str, _Running] = {}
        for result in RESULTS:
            telemetry.WEBHOOKS.add(0, result=result)
        self._ended = asyncio.Event()
        """Set when a delivery has ended, so that another one may start."""

    @property
    def is_idle(self) -> bool:
        """Whether no delivery is running."""
        return not self._running

    async def run(self) -> None:
        """Delivers until cancelled."""
        renew_s = sweep_s = measure_s = self._monotonic()
        while True:
            self._ended.clear()
            try:
                now_s = self._monotonic()
                if now_s >= renew_s:
                    await self.renew_leases()
                    renew_s = now_s + RENEW_PERIOD_S
                if now_s >= sweep_s:
                    await self.sweep()
                    sweep_s = now_s + SWEEP_PERIOD_S
                if now_s >= measure_s:
                    await self.measure()
                    measure_s = now_s + MEASURE_PERIOD_S
                await self.claim()
            except DatabaseUnavailable as error:
                log.warning("webhooks wait for the database: %s", error.cause)
                await asyncio.sleep(RECONNECT_S)
            except Exception:
                log.exception("webhooks are not delivered")
                await asyncio.sleep(RECONNECT_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._ended.wait()

    async def claim(self) -> None:
        """Starts deliveries that are due."""
        limit = min(MAX_CLAIMS, MAX_DELIVERIES - len(self._running))
        if limit <= 0:
            return
        now_us, start_s = to_us(self._clock()), self._monotonic()
        expires_us = to_us(self._clock() + timedelta(seconds=self._lease_s))
        busy_hosts = self._slots.busy_hosts()
        due = await self._database.read(lambda connection: rows.read_due(connection, now_us, busy_hosts, limit))
        chosen = self._choose(due)
        if not chosen:
            return

        def work(connection: Connection) -> list[tuple[rows.DueDelivery, Lease]]:
            leases = [(each, rows.claim(connection, each, self._owner, now_us, expires_us)) for each in chosen]
            return [(each, lease) for each, lease in leases if lease is not None]

        for each, lease in await self._database.write(work):
            self._start(lease, each.attempts, start_s)

    async def renew_leases(self) -> None:
        """Renews the leases of running deliveries, and stops those that have lost theirs."""
        if not self._running:
            return
        before, start_s = dict(self._running), self._monotonic()
        expires_us = to_us(self._clock() + timedelta(seconds=self._lease_s))
        numbers = await self._database.write(
            lambda connection: rows.renew(connection, self._owner, before.keys(), expires_us)
        )
        for prediction_id, running in before.items():
            if numbers.get(prediction_id) == running.lease.number:
                running.renewed_s = start_s
            else:
                running.task.cancel()

    async def sweep(self) -> None:
        """Removes dead deliveries that are too old, in small batches."""
        before_us = to_us(self._clock() - self._dead_max_age)

        def work(connection: Connection) -> int:
            return rows.delete_dead(connection, before_us, SWEEP_BATCH)

        while await self._database.write(work) == SWEEP_BATCH:
            pass

    async def measure(self) -> None:
        """Records the number of webhooks that are not delivered."""
        for status, count in (await self._database.read(rows.count_undelivered)).items():
            telemetry.WEBHOOKS_UNDELIVERED.set(count, status=status)

    async def aclose(self) -> None:
        """Stops all deliveries and leaves them to other processes. Call it after `run` has ended."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(DatabaseUnavailable):
            await self._database.write(lambda connection: rows.release_all(connection, self._owner))
        self._sender.close()

    def _choose(self, due: Sequence[rows.DueDelivery]) -> list[rows.DueDelivery]:
        """As many as can be sent now. Those of running predictions wait for changes first, so they need no slot yet."""
        free: dict[str, int] = {}
        chosen = []
        for each in due:
            if each.prediction_id in self._running:
                continue
            left = free.setdefault(each.host, self._slots.free(each.host))
            if each.has_ended:
                free[each.host] = left - 1
            if left > 0 or not each.has_ended:
                chosen.append(each)
        return chosen

    def _start(self, lease: Lease, attempts: int, renewed_s: float) -> None:
        prediction_id = lease.prediction_id
        delivery = ClaimedDelivery(lease, attempts, lambda: self._is_leased(lease))
        context = contextvars.Context()
        context.run(set_prediction, prediction_id)
        task = asyncio.get_running_loop().create_task(self._runner.run(delivery), context=context)
        self._running[prediction_id] = _Running(lease, task, renewed_s)

        def on_done(done: asyncio.Task[None]) -> None:
            del self._running[prediction_id]
            self._ended.set()
            if not done.cancelled() and done.exception() is not None:
                fields, error = {"prediction_id": prediction_id}, done.exception()
                log.error(
                    "prediction %s: the delivery of its webhook failed", prediction_id, exc_info=error, extra=fields
                )

        task.add_done_callback(on_done)

    def _is_leased(self, lease: Lease) -> bool:
        """Whether the lease lasts longer than a request."""
        running = self._running.get(lease.prediction_id)
        return running is not None and self._monotonic() < running.renewed_s + LEASE_MARGIN_S
