"""Webhooks in requests, the objects that they get, and the endpoint of the signing secret."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.auth import caller_of
from serve.api.cog import prediction_response
from serve.api.replicate import prediction_json
from serve.media.links import LinkSigner
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Prediction
from serve.predictions.request import resolve_version
from serve.predictions.webhook import Webhook
from serve.settings import Settings
from serve.webhooks.sender import Render
from serve.webhooks.signing_secrets import SigningSecrets


def routes(secrets: SigningSecrets) -> list[Route]:
    async def secret(request: Request) -> Response:
        newest, *_ = await secrets.valid(caller_of(request).owner)
        return JSONResponse({"key": newest}, headers={"Cache-Control": "no-store"})

    return [Route("/v1/webhooks/default/secret", secret, methods=["GET"])]


def webhook_renderer(outputs: OutputStore, links: LinkSigner, settings: Settings) -> Render:
    """Renders the prediction object of the API that has accepted the webhook, with the images that exist so far."""
    cog_model = resolve_version(settings, None)

    async def render(webhook: Webhook, prediction: Prediction) -> dict[str, Any]:
        if webhook.api == "cog":
            return await prediction_response(prediction, outputs, cog_model, with_unfinished=True)
        return await prediction_json(prediction, outputs, links, settings, with_unfinished=True)

    return render
