"""The right of one process to do a task that concerns all of them."""

import secrets
import time
from collections.abc import Callable

from sqlalchemy import Connection, or_

from serve.database.connection import Database
from serve.database.tables import task_leases
from serve.database.upsert import insert_into

SECOND_US = 1_000_000


class TaskLease:
    """The lease of a process on the task `name`, for `duration_s`. `now` returns seconds since 1970."""

    def __init__(self, database: Database, name: str, duration_s: float, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._name = name
        self._duration_s = duration_s
        self._now = now
        self._owner = secrets.token_hex(16)

    async def take(self) -> bool:
        """Takes or extends the lease. Returns False if another process has it. Raises `DatabaseUnavailable`."""
        now_s = self._now()
        values = {
            "name": self._name,
            "owner": self._owner,
            "expires_us": int((now_s + self._duration_s) * SECOND_US),
        }
        is_free = or_(task_leases.c.owner == self._owner, task_leases.c.expires_us <= int(now_s * SECOND_US))

        def work(connection: Connection) -> bool:
            statement = insert_into(connection, task_leases).values(values)
            changes = {"owner": self._owner, "expires_us": values["expires_us"]}
            taken = statement.on_conflict_do_update(index_elements=["name"], set_=changes, where=is_free)
            return connection.execute(taken.returning(task_leases.c.owner)).one_or_none() is not None

        return await self._database.write(work)
