"""The processes of a service under test."""

from contextlib import suppress

import psutil

from serve.launch.subprocess_service import LocalService


def processes(service: LocalService, title: str) -> list[psutil.Process]:
    """The workers of the service whose process title contains `title`."""
    found = []
    for process in psutil.Process(service.process_id).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_all(service: LocalService) -> None:
    """Kills every process of the service, as a power failure would."""
    root = psutil.Process(service.process_id)
    tree = [root, *root.children(recursive=True)]
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, 30)
