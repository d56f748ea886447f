"""The burst benchmark: its clients follow `Retry-After`, and its statistics."""

from datetime import UTC, datetime

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import RawTestServer

from benchmarks import burst
from benchmarks.burst import ClientResult, run_burst, summarise


async def test_refused_client_sends_its_request_again_after_the_time_it_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(burst, "POLL_INTERVAL_S", 0)
    responses = iter(
        [
            web.json_response({}, status=429, headers={"Retry-After": "0.25"}),
            web.json_response({"id": "a", "status": "starting"}, status=201),
            web.json_response({"id": "a", "status": "succeeded", "completed_at": "2026-01-31T12:00:00.500Z"}),
        ]
    )

    async def respond(_: web.BaseRequest) -> web.Response:
        return next(responses)

    async with RawTestServer(respond) as server, ClientSession(server.make_url("/")) as session:
        (result,) = await run_burst(session, {}, 1)
    assert (len(result.answer_s), result.retry_after_s, result.outcome) == (2, 0.25, "succeeded")
    assert result.ended_at_s == datetime(2026, 1, 31, 12, 0, 0, 500_000, UTC).timestamp()


def test_true_wait_of_a_refusal_ends_with_the_prediction_of_its_rank() -> None:
    results = [
        ClientResult([0.5], ended_at_s=10, outcome="succeeded"),
        ClientResult([0.1], ended_at_s=20, outcome="succeeded"),
        ClientResult([0.1, 0.1], refused_at_s=0, retry_after_s=15, ended_at_s=30, outcome="succeeded"),
        ClientResult([0.1, 0.2], refused_at_s=1, retry_after_s=5, ended_at_s=40, outcome="failed"),
    ]
    summary = summarise(results)
    assert summary["outcomes"] == {"succeeded": 3, "failed": 1}
    assert (summary["posts"], summary["refused"], summary["good_estimates"]) == (6, 2, 1)
    assert summary["true_wait"] == {"p50_s": 10, "p95_s": 19, "p99_s": 19}
    assert summary["estimate_by_true_wait"]["p99"] == 1.5
    assert summary["post"]["max_s"] == 0.5


@pytest.mark.parametrize(
    ("estimate_s", "true_s", "is_good"),
    [
        (10, 20, True),
        (10, 21, False),
        (20, 10, True),
        (21, 10, False),
        (1, 0.2, True),
        (2, 0.2, False),
        (2, -0.5, False),
    ],
)
def test_estimate_within_a_factor_of_two_or_a_second_is_good(estimate_s: float, true_s: float, is_good: bool) -> None:
    assert burst._is_good(estimate_s, true_s) is is_good
