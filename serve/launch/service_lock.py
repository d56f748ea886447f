"""Keeps a second service off the port and the state folder of a running one."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunning(Exception):
    """Another service has the lock."""


@contextmanager
def service_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of the state folder `folder`, which ends with the process. Raises `AlreadyRunning`.

    Ray Serve shares its port with other processes of the user, so a second service on it would start, and get half of
    the requests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "service.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning from None
        yield
