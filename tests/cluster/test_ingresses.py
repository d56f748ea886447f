"""Several ingress replicas: each answers for the predictions, images and files of all."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from serve.launch.subprocess_service import LocalService, local_service
from tests.cluster.client import SMALL, as_arguments, connect, predict, white_png
from tests.cluster.databases import database_settings

REPLICAS = 3
ATTEMPTS = 24
"""Serve's proxy chooses a replica for each request: all of them are asked with near certainty."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalService]:
    with database_settings(request.param) as assignments:
        settings = as_arguments(
            {
                **assignments,
                "state_folder": str(tmp_path_factory.mktemp("state")),
                "ingress_replicas": str(REPLICAS),
                "ingress_num_cpus": "0.1",
                "outputs.delivery": "url",
            }
        )
        with local_service(*settings, environment=environment) as running_service:
            yield running_service


def statuses(service: LocalService, method: str, path: str) -> set[int]:
    with connect(service) as client:
        return {client.request(method, path).status_code for _ in range(ATTEMPTS)}


def test_predictions_and_images_are_the_same_for_all(service: LocalService) -> None:
    prediction = predict(service, prompt="a boat", **SMALL)
    assert prediction["status"] == "succeeded", prediction["error"]
    assert statuses(service, "GET", f"/v1/predictions/{prediction['id']}") == {200}
    assert statuses(service, "GET", urlsplit(prediction["output"][0]).path) == {200}


def test_keys_and_streams_are_the_same_for_all(service: LocalService) -> None:
    body = {"input": {"prompt": "a boat", **SMALL}}
    with connect(service) as client:
        headers = {"Idempotency-Key": "a-key"}
        created = [client.post("/v1/predictions", json=body, headers=headers).json() for _ in range(ATTEMPTS)]
        assert len({each["id"] for each in created}) == 1
        streams = [client.get(urlsplit(each["urls"]["stream"]).path).text for each in created]
    events = [[line for line in text.splitlines() if line.startswith("event: ")] for text in streams]
    assert all(each[-2:] == ["event: output", "event: done"] for each in events)


def test_files_are_the_same_for_all(service: LocalService) -> None:
    with connect(service) as client:
        file = client.post("/v1/files", files={"content": ("a.png", white_png(320, 256))}).raise_for_status().json()
        path = f"/v1/files/{file['id']}"
        assert statuses(service, "GET", path) == statuses(service, "GET", f"{path}/download") == {200}
        lists = [client.get("/v1/files").json()["results"] for _ in range(ATTEMPTS)]
        assert all([each["id"] for each in files] == [file["id"]] for files in lists)
        for _ in range(REPLICAS):
            prediction = predict(service, prompt="a boat", image=file["urls"]["get"], **SMALL)
            assert prediction["status"] == "succeeded", prediction["error"]
        assert client.delete(path).status_code == 204
    assert statuses(service, "GET", path) == {404}
