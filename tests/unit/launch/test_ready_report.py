"""The addresses and pools that a service prints when it is ready."""

import pytest

from serve.launch.ready_report import PoolState, http_url, report_lines
from serve.settings import Settings

URL = "http://127.0.0.1:8000"
METRICS = "http://127.0.0.2:8080/metrics"
SETTINGS = Settings.model_validate(
    {
        "pools": {
            "dev-bf16": {"model": "dev"},
            "fp8": {"model": "dev", "precision": "fp8", "device": "cuda"},
            "schnell": {"model": "schnell"},
        }
    }
)


def lines(**states: PoolState) -> list[str]:
    return report_lines(
        SETTINGS, {name.replace("_", "-"): state for name, state in states.items()}, URL, METRICS, "/logs"
    )


def test_addresses_of_the_service_the_playground_and_the_metrics_come_first() -> None:
    assert dict(line.split() for line in lines()[:4]) == {
        "service": URL,
        "playground": f"{URL}/playground",
        "metrics": METRICS,
        "logs": "/logs",
    }


def test_each_pool_has_its_device_precision_and_compute_dtype() -> None:
    *_, dev, fp8, schnell = lines(dev_bf16=PoolState(2, 1, "float32"))
    assert dev.split() == ["dev-bf16", "dev", "cpu", "bf16", "float32", "2", "running,", "1", "starting"]
    # Of pools without a replica, the setting is known.
    assert fp8.split()[:5] == ["fp8", "dev", "cuda", "fp8", "bfloat16"]
    assert schnell.split()[:5] == ["schnell", "schnell", "cpu", "bf16", "auto"]
    assert "none" in schnell


def test_columns_are_aligned() -> None:
    table = lines(dev_bf16=PoolState(1, 0, "float32"))[4:]
    starts = {line.index(word, 9) for line, word in zip(table, ("DEVICE", "cpu", "cuda", "cpu"), strict=True)}
    assert len(starts) == 1


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", URL), ("::1", "http://[::1]:8000")])
def test_address_of_ipv6_has_brackets(host: str, expected: str) -> None:
    assert http_url(host, 8000) == expected
