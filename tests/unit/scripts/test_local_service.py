"""The service as a child process, with a fake in its place: it is waited for, and nothing of it is left."""

import os
import signal
from collections.abc import Iterator

import pytest

from serve.launch import subprocess_service
from tests.unit.scripts.conftest import FakeService


def test_it_is_asked_to_end_and_nothing_of_it_is_left(fake: FakeService) -> None:
    with subprocess_service.local_service():
        assert fake.left_something_running(within_s=0.1)
    assert fake.ended == "SIGINT"
    assert not fake.left_something_running()


def test_one_that_does_not_end_is_ended(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_service, "STOP_TIMEOUT_S", 0.2)
    fake.behave(does_not_end=True)
    with subprocess_service.local_service():
        pass
    assert not fake.left_something_running()


def test_one_that_broke_down_leaves_no_child_behind(fake: FakeService) -> None:
    with subprocess_service.local_service() as service:
        os.kill(service.process_id, signal.SIGKILL)
    assert not fake.left_something_running()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell runs in the background is started without the handler that raises KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_impatient_caller_leaves_nothing_behind_either(fake: FakeService) -> None:
    fake.behave(interrupts_its_client_at_its_end=True)
    with pytest.raises(KeyboardInterrupt), subprocess_service.local_service():
        pass
    assert not fake.left_something_running()


def test_what_it_printed_says_why_it_did_not_start(fake: FakeService) -> None:
    fake.behave(fault="no such model")
    with (
        pytest.raises(subprocess_service.ServiceStartError, match="serve: no such model"),
        subprocess_service.local_service(),
    ):
        pass
