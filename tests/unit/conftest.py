"""The fixture of the fake service."""

from pathlib import Path

import pytest

from serve.launch import subprocess_service
from tests.fake_service import FakeService


@pytest.fixture
def fake_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """`subprocess_service.local_service` starts this fake instead of the real service."""
    service = FakeService(tmp_path / "service")
    monkeypatch.setattr(subprocess_service, "ROOT", service.folder)
    return service
