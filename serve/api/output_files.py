"""Route that serves finished images, to clients with the token or with a signed link."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.api.stored_content import StoredContent, stored_response
from serve.media.links import SIGNATURE_PARAMETER, LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore, file_name, media_type
from serve.settings import Settings


def routes(outputs: OutputStore, store: ObjectStore, links: LinkSigner, settings: Settings) -> list[Route]:
    headers = {
        # The image under a name never changes. `private` keeps it out of shared caches, which do not check the token.
        "Cache-Control": f"private, max-age={settings.outputs.max_age_s:.0f}, immutable",
        "X-Content-Type-Options": "nosniff",
    }

    async def output(request: Request) -> Response:
        prediction_id, name = request.path_params["prediction_id"], request.path_params["name"]
        key = outputs.key(prediction_id, name)
        # `AuthMiddleware` has checked the token unless there is a signature.
        if SIGNATURE_PARAMETER in request.query_params:
            await links.check(key, request.query_params)
        image_name = f"{prediction_id}-{file_name(name)}"
        try:
            return await stored_response(
                request, store, StoredContent(key, media_type(name), "inline", image_name), headers
            )
        except FileNotFoundError:
            raise outputs.not_found() from None

    return [Route("/outputs/{prediction_id}/{name:path}", output, methods=["GET"])]
