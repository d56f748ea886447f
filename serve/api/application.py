"""Builds the HTTP application: the routes, and the middleware that every request passes."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import Lifespan

from serve import tracing
from serve.access.access_control import AccessControl
from serve.api.auth import RATE_HEADERS, AuthMiddleware, RateHeadersMiddleware
from serve.api.body_reader import BodyLimits, BodyReaderMiddleware
from serve.api.error_responses import ErrorMiddleware, http_exception
from serve.api.gzip_requests import GzipRequestMiddleware
from serve.api.request_spans import RequestSpanMiddleware
from serve.api.response_compression import ResponseCompressionMiddleware
from serve.api.security_headers import SecurityHeadersMiddleware
from serve.api.signs_of_life import SignsOfLifeMiddleware
from serve.settings import Settings

CORS_METHODS = ("GET", "POST", "PUT", "DELETE", "QUERY")
EXPOSED_HEADERS = (
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Preference-Applied",
    "Retry-After",
    "Server-Timing",
    "X-Request-ID",
    *RATE_HEADERS,
)


def http_application(
    routes: Sequence[BaseRoute],
    settings: Settings,
    access: AccessControl | None,
    lifespan: Lifespan[Starlette] | None = None,
) -> Starlette:
    """The application. Without `access`, requests need no token. The outermost middleware is first."""
    app = Starlette(
        routes=routes,
        middleware=[
            *((Middleware(RequestSpanMiddleware),) if tracing.is_on() else ()),
            Middleware(SignsOfLifeMiddleware),
            Middleware(SecurityHeadersMiddleware),
            *_cors(settings),  # Outside of `AuthMiddleware`, as browsers send preflight requests without a token.
            Middleware(ResponseCompressionMiddleware),
            Middleware(RateHeadersMiddleware),
            Middleware(ErrorMiddleware),
            Middleware(AuthMiddleware, access=access),
            Middleware(BodyReaderMiddleware, limits=BodyLimits(settings)),
            Middleware(GzipRequestMiddleware),
        ],
        exception_handlers={HTTPException: http_exception},
        lifespan=lifespan,
    )
    # Starlette would redirect to a URL with the Host header, which clients choose.
    app.router.redirect_slashes = False
    return app


def _cors(settings: Settings) -> tuple[Middleware, ...]:
    if not settings.cors_origins:
        return ()
    return (
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=CORS_METHODS,
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        ),
    )
