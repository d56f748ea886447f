"""Route that serves finished images."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.media.output_store import OutputStore
from serve.settings import Settings


def routes(outputs: OutputStore, settings: Settings) -> list[Route]:
    headers = {
        # The image under a name never changes. `private` keeps it out of shared caches, which do not check the token.
        "Cache-Control": f"private, max-age={settings.outputs.max_age_s:.0f}, immutable",
        "X-Content-Type-Options": "nosniff",
    }

    async def output(request: Request) -> Response:
        content, media_type = await outputs.read(request.path_params["prediction_id"], request.path_params["name"])
        return Response(content, headers=headers, media_type=media_type)

    return [Route("/outputs/{prediction_id}/{name}", output, methods=["GET"])]
