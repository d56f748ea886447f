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


def find_binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`, of the newest version; None if PostgreSQL is not installed."""
    on_path = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    found = versions[-1] if versions else on_path and Path(on_path)
    return found.parent if found else None


@contextmanager
def postgres_server(binaries: Path) -> Iterator[str]:
    """The URL of an empty database of a server that runs for the duration of the block, with default settings."""
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    # The paths of sockets have a length limit.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        if user is not None:
            owner = pwd.getpwnam(user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), "--pgdata", f"{folder}/data", *arguments]
            output = subprocess.DEVNULL
            subprocess.run(command, check=True, user=user, cwd=folder, stdout=output, stderr=output)

        run("initdb", "--username=flux", "--auth=trust", "--no-sync")
        port = free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        run("pg_ctl", "start", "--timeout", str(START_TIMEOUT_S), "--log", f"{folder}/log", "--options", options)
        try:
            yield f"postgresql://flux@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "stop", "--mode=immediate")
