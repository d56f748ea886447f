"""The service as a subprocess, with a fake service: start errors, signals, and the end of all its processes."""

import os
import signal
from collections.abc import Iterator

import pytest

from serve.launch import subprocess_service
from tests.fake_service import FakeService


def test_service_receives_sigint_and_all_its_processes_end(fake_service: FakeService) -> None:
    with subprocess_service.local_service():
        assert fake_service.has_running_processes(timeout_s=0.1)
    assert fake_service.received_signal == "SIGINT"
    assert not fake_service.has_running_processes()


def test_service_that_ignores_sigint_is_killed(fake_service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_service, "STOP_TIMEOUT_S", 0.2)
    fake_service.configure(ignores_signals=True)
    with subprocess_service.local_service():
        pass
    assert not fake_service.has_running_processes()


def test_crashed_service_leaves_no_child(fake_service: FakeService) -> None:
    with subprocess_service.local_service() as service:
        os.kill(service.process_id, signal.SIGKILL)
    assert not fake_service.has_running_processes()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restores the handler that raises KeyboardInterrupt, which shells remove from background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_while_stopping_leaves_no_process(fake_service: FakeService) -> None:
    fake_service.configure(interrupts_parent_when_stopped=True)
    with pytest.raises(KeyboardInterrupt), subprocess_service.local_service():
        pass
    assert not fake_service.has_running_processes()


def test_start_error_has_the_output_of_the_service(fake_service: FakeService) -> None:
    fake_service.configure(error="no such model")
    with (
        pytest.raises(subprocess_service.ServiceStartError, match="serve: no such model"),
        subprocess_service.local_service(),
    ):
        pass


def test_start_error_says_how_long_the_service_had(fake_service: FakeService) -> None:
    with (
        pytest.raises(subprocess_service.ServiceStartError, match="it was not ready after 0 s"),
        subprocess_service.local_service(start_timeout_s=0),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"levelname": "INFO", "message": "ready: http://127.0.0.1:8000"}\n', "ready: http://127.0.0.1:8000"),
        ("ready: http://127.0.0.1:8000\n", "ready: http://127.0.0.1:8000\n"),
        ("{not JSON\n", "{not JSON\n"),
        ("8000\n", "8000\n"),
    ],
)
def test_lines_of_the_service_may_be_json(line: str, message: str) -> None:
    assert subprocess_service._message(line) == message
