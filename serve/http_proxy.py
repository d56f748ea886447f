"""Sets up Serve's HTTP proxy, in its own process.

The environment variable `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `proxy_middleware`.
"""

from starlette.middleware import Middleware

from serve import telemetry
from serve.api.connection_limits import limit_connections
from serve.api.proxy import ProxyErrorMiddleware
from serve.ray_metrics import use_ray_metrics


def proxy_middleware() -> list[Middleware]:
    """Serve calls this once, before its proxy listens."""
    use_ray_metrics()
    telemetry.INGRESS_LOST.add(0)
    limit_connections()
    return [Middleware(ProxyErrorMiddleware)]
