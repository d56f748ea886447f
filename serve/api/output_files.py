"""Routes that serve finished images, to callers who may see the prediction, and to anyone with a signed link."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.api.auth import caller_of
from serve.api.stored_content import StoredContent, stored_response
from serve.errors import NotFound
from serve.media.links import PREFIX, LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore, file_name, media_type
from serve.predictions.service import PredictionService
from serve.settings import Settings


def routes(
    service: PredictionService, outputs: OutputStore, store: ObjectStore, links: LinkSigner, settings: Settings
) -> list[Route]:
    headers = {
        # The image under a name never changes. `private` keeps it out of shared caches, which do not check the token.
        "Cache-Control": f"private, max-age={settings.outputs.max_age_s:.0f}, immutable",
        "X-Content-Type-Options": "nosniff",
    }

    async def own_output(request: Request) -> Response:
        caller, (prediction_id, _) = caller_of(request), _parameters(request)
        if caller.visible_owner is not None:
            try:
                await service.get(prediction_id, caller)
            except NotFound:
                raise outputs.not_found() from None
        return await output(request)

    async def output(request: Request) -> Response:
        prediction_id, name = _parameters(request)
        key = outputs.key(prediction_id, name)
        content = StoredContent(key, media_type(name), "inline", f"{prediction_id}-{file_name(name)}")
        try:
            return await stored_response(request, store, content, headers)
        except FileNotFoundError:
            raise outputs.not_found() from None

    async def linked_output(request: Request) -> Response:
        await links.check(outputs.key(*_parameters(request)), request.path_params["ticket"])
        return await output(request)

    path = "/outputs/{prediction_id}/{number}/{name}"
    return [
        Route(path, own_output, methods=["GET"]),
        Route(f"{PREFIX}{{ticket}}{path}", linked_output, methods=["GET"]),
    ]


def _parameters(request: Request) -> tuple[str, str]:
    """The id of the prediction, and the name of the output in the store."""
    parameters = request.path_params
    return parameters["prediction_id"], f"{parameters['number']}/{parameters['name']}"
