"""Route that serves finished images."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.media.output_store import OutputStore
from serve.settings import Settings


def routes(outputs: OutputStore, settings: Settings) -> list[Route]:
    headers = {
        # A picture never changes under its name, and whoever may not ask for it should not find it in a shared cache.
        "Cache-Control": f"private, max-age={settings.outputs.max_age_s:.0f}, immutable",
        "X-Content-Type-Options": "nosniff",
    }

    async def output(request: Request) -> Response:
        content, media_type = await outputs.read(request.path_params["prediction_id"], request.path_params["name"])
        return Response(content, headers=headers, media_type=media_type)

    return [Route("/outputs/{prediction_id}/{name}", output, methods=["GET"])]
