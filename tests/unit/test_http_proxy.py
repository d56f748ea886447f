"""What Serve's HTTP proxy gets from this package."""

import pytest
from starlette.responses import PlainTextResponse
from uvicorn.config import HTTP_PROTOCOLS, Config

from serve import telemetry
from serve.api.connection_limits import LimitedHttpProtocol
from serve.api.proxy import ProxyErrorMiddleware
from serve.http_proxy import proxy_middleware
from tests.metrics import RecordedMetrics


def test_proxy_limits_connections_and_exports_its_counter(
    monkeypatch: pytest.MonkeyPatch, metrics: RecordedMetrics
) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    (middleware,) = proxy_middleware()
    added: object = middleware.cls
    assert added is ProxyErrorMiddleware
    config = Config(PlainTextResponse("fine"), log_config=None)
    config.load()
    assert config.http_protocol_class is LimitedHttpProtocol
    assert telemetry.INGRESS_LOST.name in metrics.values
