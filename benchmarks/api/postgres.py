"""Runs a PostgreSQL server of this machine's packages, on a free loopback port."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.launch.subprocess_service import free_port

START_TIMEOUT_S = 60


class PostgresUnavailable(Exception):
    """The server cannot be started. The message has the reason."""


def find_binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`, of the newest version; None if PostgreSQL is not installed."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    on_path = shutil.which("initdb")
    found = versions[-1] if versions else Path(on_path) if on_path else None
    return found.parent if found else None


class PostgresServer:
    """A server with one database, which is empty at first, and default settings."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        self.port = free_port()
        self.url = f"postgresql://flux@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        if self._user is not None:
            os.chown(self._folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._run("initdb", "--username=flux", "--auth=trust", "--no-sync")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "start", "--timeout", str(START_TIMEOUT_S), "--log", log, "--options", options)

    def stop(self) -> None:
        """Ends all connections at once."""
        self._run("pg_ctl", "stop", "--mode=immediate")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "--pgdata", str(self._folder / "data"), *arguments]
        output = subprocess.DEVNULL
        subprocess.run(command, check=True, user=self._user, cwd=self._folder, stdout=output, stderr=output)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs for the duration of the block. Raises `PostgresUnavailable`."""
    binaries = find_binaries()
    if binaries is None:
        raise PostgresUnavailable("it is not installed; on Debian, install the package postgresql")
    # The paths of sockets have a length limit.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(binaries, Path(folder))
        try:
            server.create()
            server.start()
        except (OSError, KeyError, subprocess.CalledProcessError) as error:
            raise PostgresUnavailable(f"it does not start: {error}") from error
        try:
            yield server
        finally:
            server.stop()
