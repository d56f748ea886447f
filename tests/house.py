"""The rooms behind the faces put together as the service does it, with pools and an internet that a test chooses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from serve.api import cog, files, replicate
from serve.api.problem import ErrorTable, unrouted
from serve.media.outputs import OutputStore
from serve.predictions.desk import Desk
from serve.predictions.pictures import Pictures
from serve.predictions.record import Prediction
from serve.predictions.runner import Pool, Runner
from serve.predictions.store import MemoryStore
from serve.predictions.versions import ServedVersion, served_version
from serve.settings import Settings
from tests.fakes import FakeFetcher


@dataclass(frozen=True)
class House:
    desk: Desk
    served: ServedVersion
    app: Starlette

    async def create(self, inputs: Mapping[str, Any]) -> Prediction:
        return await self.desk.create(inputs, self.served)


def house(
    pool: Pool, settings: Settings | None = None, fetcher: FakeFetcher | None = None, opened: bool = True
) -> House:
    """One pool stands for all rows of the settings."""
    settings = settings or Settings()
    store = MemoryStore(settings.max_records, settings.record_max_age_s)
    pictures = Pictures(settings, fetcher or FakeFetcher({}))
    outputs = OutputStore(settings.outputs)
    desk = Desk(settings, store, Runner(store, dict.fromkeys(settings.pools, pool), pictures, outputs), pictures)
    if opened:
        desk.open()
    routes = [
        *replicate.routes(desk, outputs, settings),
        *cog.routes(desk, outputs, settings),
        *files.routes(outputs, settings),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(ErrorTable)], exception_handlers={HTTPException: unrouted})
    return House(desk, served_version(settings, None), app)
