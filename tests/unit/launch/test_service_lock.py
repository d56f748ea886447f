from pathlib import Path

import pytest

from serve.launch.service_lock import AlreadyRunning, service_lock


def test_folder_is_locked_until_the_service_ends(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "port-8000"
    with service_lock(folder), pytest.raises(AlreadyRunning), service_lock(folder):
        pass
    with service_lock(folder):
        pass
