"""The service as a child process, with a fake in its place."""

import httpx
import pytest

from scripts.service import ServiceFailed, free_port
from tests.unit.scripts.conftest import FakeService


@pytest.fixture
def client() -> httpx.Client:
    return httpx.Client(trust_env=False)


def test_it_is_waited_for_until_it_is_ready(fake: FakeService, client: httpx.Client) -> None:
    fake.behave(statuses=["STARTING", "STARTING", "READY"])
    with fake.start(free_port()) as service:
        service.wait_until_ready(client)
        assert client.get(f"{service.url}/health-check").json() == {"status": "READY"}


def test_what_it_prints_is_shown_until_it_is_ready(
    fake: FakeService, client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    with fake.start(free_port()) as service:
        service.wait_until_ready(client)
        before = capfd.readouterr()
        for _ in range(3):
            client.get(f"{service.url}/health-check")
    assert "loading the models" in before.err
    assert before.out == ""
    assert capfd.readouterr().err.count("answered") <= 1


def test_it_is_asked_to_end_and_nothing_of_it_is_left(fake: FakeService, client: httpx.Client) -> None:
    with fake.start(free_port()) as service:
        service.wait_until_ready(client)
        assert fake.left_something_running(within_s=0.1)
    assert fake.ended == "SIGINT"
    assert not fake.left_something_running()


def test_one_that_does_not_end_is_ended(fake: FakeService, client: httpx.Client) -> None:
    fake.behave(does_not_end=True)
    service = fake.start(free_port())
    service.wait_until_ready(client)
    service.stop(grace_s=0.2)
    assert fake.ended == "SIGTERM"
    assert not fake.left_something_running()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"exits": 3}, "ended with code 3 before it was ready"),
        ({"statuses": ["STARTING", "SETUP_FAILED"]}, "could not start: SETUP_FAILED"),
        ({"statuses": ["STARTING"] * 99}, "was not ready within 1 s"),
    ],
)
def test_one_that_does_not_become_ready_is_a_failure_with_a_reason(
    fake: FakeService, client: httpx.Client, behaviour: dict[str, object], message: str
) -> None:
    fake.behave(**behaviour)
    with fake.start(free_port()) as service, pytest.raises(ServiceFailed, match=message):
        service.wait_until_ready(client, within_s=1)
