"""Starts a PostgreSQL server of this machine's packages for tests, on a free loopback port."""

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


def find_binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl` of the newest version; None if PostgreSQL is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    if folders:
        return folders[-1].parent
    found = shutil.which("initdb")
    return Path(found).parent if found else None


class PostgresServer:
    """A running server with one database."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self.port = free_port()
        self.url = f"postgresql://flux@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        self._run("initdb", "--username=flux", "--auth=trust", "--no-sync", "--pgdata", str(self._folder / "data"))

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        log = str(self._folder / "log")
        self._ctl("start", "--wait", "--timeout", str(START_TIMEOUT_S), "--log", log, "--options", options)

    def stop(self) -> None:
        """Ends all connections at once."""
        self._ctl("stop", "--wait", "--mode=immediate")

    def _ctl(self, action: str, *arguments: str) -> None:
        self._run("pg_ctl", action, "--pgdata", str(self._folder / "data"), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        # PostgreSQL refuses to run as root.
        user = "postgres" if os.geteuid() == 0 else None
        subprocess.run(
            command, check=True, user=user, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


@contextmanager
def postgres_server(binaries: Path) -> Iterator[PostgresServer]:
    # The paths of its sockets have a length limit.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        server = PostgresServer(binaries, folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
