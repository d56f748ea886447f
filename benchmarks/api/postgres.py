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


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of an empty database. The server runs for the duration of the block, with default settings.

    Raises `PostgresUnavailable`.
    """
    binaries = find_binaries()
    if binaries is None:
        raise PostgresUnavailable("it is not installed; on Debian, install the package postgresql")
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    # The paths of sockets have a length limit.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), "--pgdata", f"{folder}/data", *arguments]
            output = subprocess.DEVNULL
            subprocess.run(command, check=True, user=user, cwd=folder, stdout=output, stderr=output)

        port = free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        try:
            if user is not None:
                os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
            run("initdb", "--username=flux", "--auth=trust", "--no-sync")
            run("pg_ctl", "start", "--timeout", str(START_TIMEOUT_S), "--log", f"{folder}/log", "--options", options)
        except (OSError, KeyError, subprocess.CalledProcessError) as error:
            raise PostgresUnavailable(f"it does not start: {error}") from error
        try:
            yield f"postgresql://flux@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "stop", "--mode=immediate")
