"""The parts of a request beyond the time of the engine."""

import pytest

from benchmarks.peers.overhead import PARTS, Sample, overhead_table, split, summarise

SAMPLE = Sample(
    sent_s=100.000,
    created_s=100.009,
    completed_s=100.309,
    received_s=100.315,
    stages_ms={"plan": 1, "queue": 8, "text": 20, "denoise": 60, "decode": 190, "encode": 10, "store": 2},
    health_check_ms=6.5,
)


def test_parts_add_up_to_the_time_beyond_the_replica() -> None:
    parts = split(SAMPLE)
    assert parts["replica_ms"] == 280
    assert parts["beyond_ms"] == pytest.approx(35)
    names = ("request_ms", "first_event_ms", "events_ms", "response_ms")
    assert [parts[name] for name in names] == pytest.approx([9, 8, 12, 6])


def test_summary_has_the_median_of_every_part() -> None:
    slow = Sample(100, 100.1, 100.5, 101, SAMPLE.stages_ms, 50)
    summary = summarise([SAMPLE, SAMPLE, slow])
    assert summary.keys() == PARTS.keys()
    assert summary["wall_ms"] == 315
    assert summary["health_check_ms"] == 6.5


def test_table_has_a_row_for_each_part() -> None:
    assert len(overhead_table(summarise([SAMPLE])).splitlines()) == 2 + len(PARTS)
