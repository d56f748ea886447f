"""The client that sends the requests of a scenario."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.peers.client import PROBE, Client, Turn
from benchmarks.peers.servers import Server
from benchmarks.peers.workload import ImageRequest, Scenario, TimedRequest
from tests.asgi_server import listening

SERVER = Server("fake", "fake", ("true",), "/generate", ImageRequest.to_json)
Respond = Callable[[int], Awaitable[Response]]
"""Responds to the request with a seed."""


def scenario(*cancel_after_s: float | None, in_flight: int = 8) -> Scenario:
    """One request for each argument; the first has seed 1."""
    requests = (TimedRequest(ImageRequest("x", seed), cancel) for seed, cancel in enumerate(cancel_after_s, 1))
    return Scenario("alone", tuple(requests), in_flight)


async def images(seed: int) -> Response:
    return JSONResponse({"output": ["data:"]})


async def run(respond: Respond, scenario: Scenario, server: Server = SERVER) -> Turn:
    async def generate(request: Request) -> Response:
        return await respond((await request.json())["seed"])

    async with listening(Starlette(routes=[Route("/generate", generate, methods=["POST"])])) as url:
        return await Client(server, url).run(scenario)


async def test_every_success_has_a_latency() -> None:
    turn = await run(images, scenario(None, None, None))
    assert len(turn.latencies_s) == 3
    assert max(turn.latencies_s) <= turn.seconds
    assert (turn.canceled, turn.errors) == (0, ())


async def test_disconnecting_clients_are_counted_and_not_waited_for() -> None:
    first_may_end, probes = asyncio.Event(), 0

    async def respond(seed: int) -> Response:
        nonlocal probes
        if seed == 1:
            await first_may_end.wait()
        probes += seed == PROBE.seed
        if probes == 2:
            first_may_end.set()
        return await images(seed)

    turn = await run(respond, scenario(0.05, None))
    assert (turn.canceled, len(turn.latencies_s)) == (1, 1)


async def test_failed_requests_are_reported() -> None:
    async def respond(seed: int) -> Response:
        return JSONResponse({"error": "x"}, 500) if seed == 1 else await images(seed)

    turn = await run(respond, scenario(None, None))
    assert len(turn.latencies_s) == 1
    assert "500" in turn.errors[0]


async def test_number_of_images_is_checked() -> None:
    requests = tuple(TimedRequest(replace(PROBE, num_outputs=4)) for _ in range(1))
    turn = await run(images, Scenario("four_outputs", requests, 1))
    assert "4" in turn.errors[0]


async def test_busy_server_is_asked_again() -> None:
    seeds: list[int] = []

    async def respond(seed: int) -> Response:
        seeds.append(seed)
        return JSONResponse({}, 409) if seeds.count(1) == 1 and seed == 1 else await images(seed)

    turn = await run(respond, scenario(None))
    assert len(turn.latencies_s) == 1
    assert seeds == [PROBE.seed, 1, 1, PROBE.seed]


async def test_requests_in_flight_are_limited_by_the_scenario_and_by_the_server() -> None:
    for server, expected in ((SERVER, 3), (replace(SERVER, max_in_flight=1), 1)):
        active, most = 0, 0

        async def respond(seed: int) -> Response:
            nonlocal active, most
            active += 1
            most = max(most, active)
            for _ in range(20):
                await asyncio.sleep(0.002)
            active -= 1
            return await images(seed)

        await run(respond, scenario(*[None] * 6, in_flight=3), server)
        assert most == expected
