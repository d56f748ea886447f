"""Requests, responses and environments of the servers."""

import pytest

from benchmarks.peers.servers import POOL, our_inputs, our_server, peers, read_outputs, server_environment
from benchmarks.peers.workload import ImageRequest
from serve.deployment import replica_environment
from serve.generation_plan import make_plan
from serve.inputs import validate_inputs
from serve.settings import Settings

URI = "data:image/png;base64,AA=="


@pytest.mark.parametrize("body", [{"output": [URI]}, {"output": [URI], "status": "succeeded"}, [[URI]]])
def test_outputs_are_read_from_every_form_of_response(body: object) -> None:
    assert read_outputs(body) == [URI]


@pytest.mark.parametrize("body", [{"output": None, "status": "failed"}, {"error": "busy"}, [{}], "busy", None, []])
def test_response_without_images_is_an_error(body: object) -> None:
    with pytest.raises(ValueError, match="no images"):
        read_outputs(body)


def test_the_service_generates_exactly_what_was_requested() -> None:
    request = ImageRequest("a boat", seed=5, width=768, height=512, num_inference_steps=3, num_outputs=2)
    inputs, ignored = validate_inputs(our_inputs(request)["input"], 1000)
    plan = make_plan(inputs, Settings(), 0)
    assert not ignored
    assert (plan.size, plan.steps, plan.seeds, plan.pool) == ((768, 512), 3, (5, 6), POOL)
    assert not plan.check_safety


def test_peers_have_the_environment_of_a_replica() -> None:
    replica = replica_environment(Settings().pools[POOL].model_copy(update={"num_threads": 2}))
    for server in peers().values():
        environment = server_environment(server, {"PATH": "/bin"}, 8000, 2, "float32")
        assert replica.items() <= environment.items()
        assert environment["PATH"].endswith(":/bin")
        assert environment["PORT"] == "8000"


def test_the_service_sets_the_environment_of_its_replica_itself() -> None:
    assert "MALLOC_ARENA_MAX" not in server_environment(our_server(2), {}, 8000, 2, "float32")
