"""Readiness probe for load balancers. `/health-check` of the Cog API responds with 200 in every state."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.errors import NotReady
from serve.predictions.service import PredictionService


def routes(service: PredictionService) -> list[Route]:
    async def ready(request: Request) -> Response:
        if service.state in ("starting", "closing"):
            raise NotReady(f"the service is {'stopping' if service.state == 'closing' else 'starting'}")
        return JSONResponse({"status": service.state})

    return [Route("/readyz", ready, methods=["GET"])]
